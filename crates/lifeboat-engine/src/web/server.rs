//! The server: one thread, so many connections, and no connection for ever.
//!
//! Whoever sends half a request and waits holds a connection and nothing else. When all are taken, the one that has waited longest for its
//! client is closed for the next one, so that waiting keeps nobody out.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::{Guests, Source, router};

/// So many connections at once. A page is below a megabyte, so this bounds what slow readers hold.
const MAX_CONNECTIONS: usize = 64;
/// A request has arrived after this, or never does; also the time that a connection may idle.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
/// A connection lives no longer, whatever is done on it: a client that reads slowly is one that does not read.
const MAX_LIFE: Duration = Duration::from_secs(60);
/// Bytes of a request's head, and of what is read ahead. hyper takes no less than 8 KiB.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Header lines of a request.
const MAX_HEADERS: usize = 64;
/// Threads for what blocks (pages of drills, names of hosts).
const BLOCKING_THREADS: usize = 4;
/// What is being answered when the server stops has so long to be answered.
const GRACE: Duration = Duration::from_secs(5);

/// Starts servers.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Listens there and answers until it is stopped. Whoever listens on loopback answers only those who ask for it by such a name, or by one of `hosts`.
    pub fn start(address: SocketAddr, hosts: &[String], source: Arc<dyn Source>) -> io::Result<Running> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let guests = Guests::of(address.ip(), hosts);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("status-page-read")
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopped) = watch::channel(false);
        let router = router(source, guests);
        let thread = std::thread::Builder::new().name("status-page".into()).spawn(move || {
            runtime.block_on(serve(listener, router, stopped));
            // A read that hangs in a store ends with the process.
            runtime.shutdown_background();
        })?;
        Ok(Running { address, stop, thread: Some(thread) })
    }
}

/// A server that runs. It stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Where it listens, with the port that it got.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// It still runs.
    pub fn runs(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Takes no more connections, and waits for what is being answered.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// One connection, as whoever accepts sees it.
#[derive(Debug)]
struct Seat {
    /// Requests of it that are being answered.
    answering: AtomicUsize,
    leave: Notify,
}

/// Whoever sits here, those who came first in front.
#[derive(Debug, Default)]
struct Seats(VecDeque<Arc<Seat>>);

impl Seats {
    /// A seat for one more; the one that waited longest for its client goes if none is free. `None`: all are being answered.
    fn take(&mut self) -> Option<Arc<Seat>> {
        // The table and its connection have one each.
        self.0.retain(|seat| Arc::strong_count(seat) > 1);
        if self.0.len() >= MAX_CONNECTIONS {
            let waits = self.0.iter().position(|seat| seat.answering.load(Ordering::Relaxed) == 0)?;
            self.0.remove(waits)?.leave.notify_one();
        }
        let seat = Arc::new(Seat { answering: AtomicUsize::new(0), leave: Notify::new() });
        self.0.push_back(seat.clone());
        Some(seat)
    }
}

async fn serve(listener: tokio::net::TcpListener, router: Router, mut stopped: watch::Receiver<bool>) {
    let (mut seats, mut connections) = (Seats::default(), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // What has ended is taken away, so that the set does not grow.
            Some(_) = connections.join_next() => continue,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                if let Some(seat) = seats.take() {
                    connections.spawn(connection(stream, router.clone(), seat, stopped.clone()));
                }
            }
            // The process has no descriptor left, or the client is gone: neither ends the server, and neither is tried in a hurry.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, router: Router, seat: Arc<Seat>, mut stopped: watch::Receiver<bool>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE).max_headers(MAX_HEADERS).max_buf_size(MAX_HEAD_BYTES);
    let (router, answering) = (TowerToHyperService::new(router), seat.clone());
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (answer, seat) = (router.call(request), answering.clone());
        async move {
            seat.answering.fetch_add(1, Ordering::Relaxed);
            let answer = answer.await;
            seat.answering.fetch_sub(1, Ordering::Relaxed);
            answer
        }
    });
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let end = tokio::time::sleep(MAX_LIFE);
    tokio::pin!(end);
    tokio::select! {
        // What a client does wrong is its own business.
        _ = connection.as_mut() => return,
        _ = &mut end => return,
        _ = seat.leave.notified() => return,
        _ = stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = &mut end => {}
    }
}
