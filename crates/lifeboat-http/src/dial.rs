//! From an address to a connection: directly, or through a proxy.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::Roots;

/// Whatever failed.
pub(crate) type AnyError = Box<dyn std::error::Error + Send + Sync>;

type Doing<T> = Pin<Box<dyn Future<Output = Result<T, AnyError>> + Send>>;

/// Something was not done in its time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Late(pub(crate) &'static str);

/// The end of every proxy's story, in one line: who looks for the cause looks for the last one.
#[derive(Debug, thiserror::Error)]
#[error("the proxy {proxy}: {reason}")]
struct ProxyError {
    proxy: String,
    reason: String,
}

/// Connects, within a time.
#[derive(Clone)]
pub(crate) struct Dial {
    ways: Ways,
    time: Option<Duration>,
}

impl Dial {
    /// `time`: for everything until a request may be sent.
    pub(crate) fn new(roots: &Roots, proxies: Arc<Matcher>, time: Option<Duration>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        Self { ways: Ways { tcp, roots: roots.clone(), proxies }, time }
    }
}

impl Service<Uri> for Dial {
    type Response = MaybeHttpsStream<Stream>;
    type Error = AnyError;
    type Future = Doing<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AnyError>> {
        self.ways.poll_ready(context)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = by_scheme(self.ways.clone(), &self.ways.roots, to);
        let time = self.time;
        Box::pin(async move {
            match time {
                Some(time) => tokio::time::timeout(time, connecting).await.map_err(|_| Late("no connection in time"))?,
                None => connecting.await,
            }
        })
    }
}

/// Connects by `way`, and speaks TLS there if the address wants it: only then it matters whose certificates are believed.
fn by_scheme<W>(mut way: W, roots: &Roots, to: Uri) -> Doing<MaybeHttpsStream<W::Response>>
where
    W: Service<Uri, Error: Into<AnyError>, Future: Send + 'static>,
    W::Response: Connection + Read + Write + Send + Unpin + 'static,
{
    if to.scheme() == Some(&Scheme::HTTP) {
        let connecting = way.call(to);
        return Box::pin(async move { Ok(MaybeHttpsStream::Http(connecting.await.map_err(Into::into)?)) });
    }
    match roots.config() {
        Ok(config) => HttpsConnector::from((way, config)).call(to),
        Err(error) => Box::pin(async move { Err(error.into()) }),
    }
}

/// Below the TLS of the server: to the server, or to a proxy that passes it on.
#[derive(Clone)]
struct Ways {
    tcp: HttpConnector,
    roots: Roots,
    proxies: Arc<Matcher>,
}

impl Service<Uri> for Ways {
    type Response = Stream;
    type Error = AnyError;
    type Future = Doing<Stream>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AnyError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        match proxy_for(&self.proxies, &to) {
            None => {
                let connecting = self.tcp.call(to);
                Box::pin(async move { Ok(Stream { inner: MaybeHttpsStream::Http(connecting.await?), asks_proxy: false }) })
            }
            Some(proxy) if to.scheme() == Some(&Scheme::HTTPS) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), ToProxy { tcp: self.tcp.clone(), roots: self.roots.clone() });
                if let Some(credentials) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(credentials.clone());
                }
                let connecting = tunnel.call(to);
                Box::pin(async move {
                    let inner = connecting.await.map_err(|error| ProxyError::of(&proxy, &error))?;
                    Ok(Stream { inner, asks_proxy: false })
                })
            }
            Some(proxy) => {
                let connecting = by_scheme(self.tcp.clone(), &self.roots, proxy.uri().clone());
                Box::pin(async move {
                    let inner = connecting.await.map_err(|error| ProxyError::of(&proxy, &*error))?;
                    Ok(Stream { inner, asks_proxy: true })
                })
            }
        }
    }
}

/// The proxy by which an address is reached. No proxy leads to the one host that hands out an instance's or a container's credentials by a
/// link-local address, and none is to see them; SDKs of clouds do not ask one either.
pub(crate) fn proxy_for(proxies: &Matcher, to: &Uri) -> Option<Intercept> {
    let host = to.host().unwrap_or_default();
    let is_near = match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        // fd00:ec2::/32 is Amazon's for the same.
        Ok(IpAddr::V6(address)) => address.is_unicast_link_local() || address.segments()[..2] == [0xfd00, 0x0ec2],
        Err(_) => host == "metadata.google.internal",
    };
    if is_near { None } else { proxies.intercept(to) }
}

/// To a proxy, itself maybe by TLS.
#[derive(Clone)]
struct ToProxy {
    tcp: HttpConnector,
    roots: Roots,
}

impl Service<Uri> for ToProxy {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = AnyError;
    type Future = Doing<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AnyError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, proxy: Uri) -> Self::Future {
        by_scheme(self.tcp.clone(), &self.roots, proxy)
    }
}

impl ProxyError {
    fn of(proxy: &Intercept, error: &(dyn std::error::Error + 'static)) -> Self {
        let uri = proxy.uri();
        let scheme = uri.scheme_str().unwrap_or("http");
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().map_or_else(String::new, |port| format!(":{port}"));
        let proxy = format!("{scheme}://{host}{port}");
        let mut last = error;
        while let Some(source) = last.source() {
            last = source;
        }
        Self { proxy, reason: last.to_string() }
    }
}

/// A connection, with what the client must know of it: a proxy that passes on requests, and not bytes, is told the whole address in each
/// (RFC 9112, 3.2.2).
pub(crate) struct Stream {
    inner: MaybeHttpsStream<TokioIo<TcpStream>>,
    asks_proxy: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.asks_proxy)
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }
}
