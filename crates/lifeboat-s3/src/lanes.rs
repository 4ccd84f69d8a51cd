//! Requests dealt out to several clients, each with connections of its own.
//!
//! Servers that offer HTTP/2 (those written in Go do, S3 itself does not) get all requests of one client over one connection, which carries what its
//! window lets through in a round trip: 1 MiB with Go's defaults, 50 MB/s at 20 ms, for all uploads together. The SDK's connector cannot be
//! told to leave HTTP/2 alone. So requests at the same time go through different clients; one after the other they take the first, whose
//! connection is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

/// As many as there are uploads at the same time, at most.
const LANES: usize = 8;

/// Several clients as one.
#[derive(Debug)]
pub(crate) struct Lanes {
    clients: Arc<[SharedHttpClient]>,
    /// Requests without an answer, of each client.
    waiting: Arc<[AtomicUsize; LANES]>,
}

impl Lanes {
    /// As many clients as there are lanes, made one like the other.
    pub(crate) fn new(make: impl FnMut() -> SharedHttpClient) -> Self {
        Self { clients: std::iter::repeat_with(make).take(LANES).collect(), waiting: Arc::default() }
    }
}

impl HttpClient for Lanes {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let (clients, waiting) = (self.clients.clone(), self.waiting.clone());
        SharedHttpConnector::new(Dealer { clients, settings: settings.clone(), components: components.clone(), waiting })
    }
}

#[derive(Debug)]
struct Dealer {
    clients: Arc<[SharedHttpClient]>,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
    waiting: Arc<[AtomicUsize; LANES]>,
}

impl HttpConnector for Dealer {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let lane = least(&self.waiting);
        let busy = Busy::new(self.waiting.clone(), lane);
        // Made when it is first needed, and kept by the client: each reads all the certificates of the system.
        let answer = self.clients[lane].http_connector(&self.settings, &self.components).call(request);
        HttpConnectorFuture::new(async move {
            let _busy = busy;
            answer.await
        })
    }
}

/// The first of those that have the fewest requests. Two who look at the same time may take the same one: then it has two.
fn least(waiting: &[AtomicUsize; LANES]) -> usize {
    (0..LANES).min_by_key(|lane| waiting[*lane].load(Ordering::Relaxed)).unwrap_or(0)
}

/// A request on its way, counted until it is answered or given up.
struct Busy {
    waiting: Arc<[AtomicUsize; LANES]>,
    lane: usize,
}

impl Busy {
    fn new(waiting: Arc<[AtomicUsize; LANES]>, lane: usize) -> Self {
        waiting[lane].fetch_add(1, Ordering::Relaxed);
        Self { waiting, lane }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.waiting[self.lane].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_at_the_same_time_take_different_lanes_and_others_the_first() {
        let waiting: Arc<[AtomicUsize; LANES]> = Arc::default();
        let take = || Busy::new(waiting.clone(), least(&waiting));
        for _ in 0..3 {
            assert_eq!(take().lane, 0, "one after the other");
        }
        let mut held: Vec<Busy> = (0..LANES).map(|_| take()).collect();
        assert_eq!(held.iter().map(|busy| busy.lane).collect::<Vec<_>>(), (0..LANES).collect::<Vec<_>>());
        let one_more = take();
        assert_eq!(one_more.lane, 0);
        held.remove(5);
        assert_eq!(take().lane, 5);
    }
}
