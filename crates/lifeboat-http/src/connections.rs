//! Requests over connections that are kept.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_smithy_runtime_api::client::connection::{CaptureSmithyConnection, ConnectionMetadata};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::retry::ErrorKind;
use http::Request;
use http::header::PROXY_AUTHORIZATION;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::Roots;
use crate::dial::{AnyError, Dial, Late, proxy_for};

/// Requests over connections that are kept. Clones share them.
#[derive(Clone)]
pub struct Connections {
    pool: Client<Dial, SdkBody>,
    proxies: Arc<Matcher>,
    read_timeout: Option<Duration>,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connections").field("read_timeout", &self.read_timeout).finish_non_exhaustive()
    }
}

impl Connections {
    /// Through the proxy that the environment names (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`). `connect_timeout` is for everything until a
    /// request may be sent, `read_timeout` for everything until an answer begins.
    pub fn new(roots: &Roots, connect_timeout: Option<Duration>, read_timeout: Option<Duration>) -> Self {
        Self::through(Matcher::from_env(), roots, connect_timeout, read_timeout)
    }

    fn through(proxies: Matcher, roots: &Roots, connect_timeout: Option<Duration>, read_timeout: Option<Duration>) -> Self {
        let proxies = Arc::new(proxies);
        let mut builder = Client::builder(TokioExecutor::new());
        // Without it connections are kept for ever.
        builder.pool_timer(TokioTimer::new());
        let pool = builder.build(Dial::new(roots, proxies.clone(), connect_timeout));
        Self { pool, proxies, read_timeout }
    }

    /// Signs in at a proxy that passes on requests. One that passes on bytes is told when the connection is made.
    fn sign_in(&self, request: &mut Request<SdkBody>) {
        if request.uri().scheme() == Some(&Scheme::HTTP)
            && let Some(proxy) = proxy_for(&self.proxies, request.uri())
            && let Some(credentials) = proxy.basic_auth()
        {
            request.headers_mut().insert(PROXY_AUTHORIZATION, credentials.clone());
        }
    }
}

impl HttpConnector for Connections {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let mut request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        };
        self.sign_in(&mut request);
        let connection = capture_connection(&mut request);
        if let Some(asked) = request.extensions().get::<CaptureSmithyConnection>() {
            asked.set_connection_retriever(move || metadata(&connection));
        }
        let (answer, time) = (self.pool.request(request), self.read_timeout);
        HttpConnectorFuture::new(async move {
            let answer = match time {
                Some(time) => {
                    tokio::time::timeout(time, answer).await.map_err(|_| ConnectorError::timeout(Late("no answer in time").into()))?
                }
                None => answer.await,
            };
            let answer = answer.map_err(lost)?.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(answer).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// A client for the SDK's services. Each connect and read timeout that they ask for has its own connections.
pub fn client(roots: Roots) -> SharedHttpClient {
    type Times = (Option<Duration>, Option<Duration>);
    let made: Mutex<Vec<(Times, SharedHttpConnector)>> = Mutex::default();
    http_client_fn(move |settings: &HttpConnectorSettings, _| {
        let times = (settings.connect_timeout(), settings.read_timeout());
        let mut made = made.lock().expect("no panic while held");
        if let Some((_, connector)) = made.iter().find(|(of, _)| *of == times) {
            return connector.clone();
        }
        let connector = SharedHttpConnector::new(Connections::new(&roots, times.0, times.1));
        made.push((times, connector.clone()));
        connector
    })
}

/// So that a connection on which a server failed is not used again: behind it may be one of many.
fn metadata(captured: &CaptureConnection) -> Option<ConnectionMetadata> {
    let proxied = captured.connection_metadata().as_ref()?.is_proxied();
    let captured = captured.clone();
    let poison = move || {
        if let Some(connected) = captured.connection_metadata().as_ref() {
            connected.poison();
        }
    };
    Some(ConnectionMetadata::builder().proxied(proxied).poison_fn(poison).build())
}

/// What kind of failure it is, for those who try again.
fn lost(error: ClientError) -> ConnectorError {
    let make: fn(AnyError) -> ConnectorError = if find::<Late>(&error).is_some() {
        ConnectorError::timeout
    } else if let Some(hyper) = find::<hyper::Error>(&error) {
        if hyper.is_user() {
            ConnectorError::user
        } else if hyper.is_incomplete_message() {
            // The server closed a kept connection at the moment when it was used.
            |error| ConnectorError::other(error, Some(ErrorKind::TransientError))
        } else {
            ConnectorError::io
        }
    } else if error.is_connect() || find::<io::Error>(&error).is_some() {
        ConnectorError::io
    } else {
        |error| ConnectorError::other(error, None)
    };
    make(error.into())
}

fn find<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use aws_smithy_runtime_api::client::http::HttpClient as _;
    use aws_smithy_runtime_api::client::runtime_components::RuntimeComponentsBuilder;
    use http_body_util::BodyExt as _;

    use super::*;

    /// A server on loopback that does `serve` with each connection, its number first.
    fn server(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (serve, stream) = (serve.clone(), stream.expect("a connection"));
                thread::spawn(move || serve(number, stream));
            }
        });
        address
    }

    /// The lines of the next request without a body; none at the end of the connection.
    fn head(reader: &mut BufReader<TcpStream>) -> Vec<String> {
        let lines = reader.lines().map_while(Result::ok);
        lines.take_while(|line| !line.is_empty()).collect()
    }

    fn answer(mut stream: &TcpStream, status: &str, body: &str) {
        let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    }

    /// Answers every request of a connection with its first line, its sign-in at a proxy, and the connection's number.
    fn echo(number: usize, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        loop {
            let lines = head(&mut reader);
            let Some(first) = lines.first() else { return };
            let signed_in = lines.iter().find(|line| line.to_lowercase().starts_with("proxy-authorization"));
            answer(&stream, "200 OK", &format!("{number} {first} {}", signed_in.map_or("", |line| line)));
        }
    }

    async fn get(connections: &Connections, uri: &str) -> Result<String, ConnectorError> {
        let request = Request::get(uri).body(SdkBody::empty()).expect("a request");
        let answer = connections.call(HttpRequest::try_from(request).expect("a request")).await?;
        let body = answer.into_body().collect().await.expect("the whole answer");
        Ok(String::from_utf8(body.to_bytes().to_vec()).expect("text"))
    }

    fn direct(read_timeout: Option<Duration>) -> Connections {
        Connections::through(Matcher::builder().build(), &Roots::system(), Some(Duration::from_secs(10)), read_timeout)
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(test)
    }

    #[test]
    fn requests_one_after_the_other_share_a_connection_and_others_have_their_own() {
        let together = Arc::new(Barrier::new(3));
        let connections_made = Arc::new(AtomicUsize::new(0));
        let made = connections_made.clone();
        let address = server(move |number, stream| {
            made.fetch_add(1, Ordering::SeqCst);
            let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
            while let Some(first) = head(&mut reader).first() {
                if first.contains("/together") {
                    // Nobody is answered before all have asked.
                    together.wait();
                }
                answer(&stream, "200 OK", &number.to_string());
            }
        });
        run(async {
            let connections = direct(None);
            for _ in 0..40 {
                get(&connections, &format!("http://{address}/")).await.expect("an answer");
            }
            // Not one: a connection is back in the pool a moment after its answer was read.
            let few = connections_made.load(Ordering::SeqCst);
            assert!(few <= 10, "{few}");
            let tasks: Vec<_> = (0..3)
                .map(|_| {
                    let (connections, uri) = (connections.clone(), format!("http://{address}/together"));
                    tokio::spawn(async move { get(&connections, &uri).await.expect("an answer") })
                })
                .collect();
            let mut numbers = Vec::new();
            for task in tasks {
                numbers.push(task.await.expect("no panic"));
            }
            numbers.sort();
            numbers.dedup();
            assert_eq!(numbers.len(), 3);
        });
    }

    #[test]
    fn a_proxy_is_told_the_whole_address_and_who_asks() {
        let proxy = server(echo);
        let near = server(echo);
        let proxies = Matcher::builder().http(format!("http://user:hunter2@{proxy}")).no("127.0.0.1").build();
        run(async {
            let connections = Connections::through(proxies, &Roots::system(), Some(Duration::from_secs(10)), None);
            let said = get(&connections, "http://store.example/b/k").await.expect("an answer");
            assert_eq!(said.to_lowercase(), "0 get http://store.example/b/k http/1.1 proxy-authorization: basic dxnlcjpodw50zxiy");
            let said = get(&connections, &format!("http://{near}/k")).await.expect("an answer");
            assert_eq!(said, "0 GET /k HTTP/1.1 ", "past the proxy, and without its password");
        });
    }

    #[test]
    fn no_proxy_is_asked_for_credentials_of_instances() {
        let proxies = Matcher::builder().all("http://proxy.example:3128").build();
        for (uri, is_near) in [
            ("http://169.254.169.254/latest/api/token", true),
            ("http://169.254.170.2/v2/credentials", true),
            ("http://[fd00:ec2::23]/v1/credentials", true),
            ("http://[fe80::1]/x", true),
            ("http://metadata.google.internal/x", true),
            ("http://169.253.1.1/x", false),
            ("http://[fd00:ec3::1]/x", false),
            ("https://sts.amazonaws.com/", false),
        ] {
            assert_eq!(proxy_for(&proxies, &uri.parse().expect("an address")).is_none(), is_near, "{uri}");
        }
    }

    #[test]
    fn tls_goes_through_a_proxy_unseen_and_offers_no_http2() {
        let (told, hears) = std::sync::mpsc::channel();
        let proxy = server(move |_, stream| {
            use std::io::Read as _;
            let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
            let lines = head(&mut reader);
            answer(&stream, "200 Connection established", "");
            let mut record = [0; 5];
            reader.read_exact(&mut record).expect("a record of TLS");
            let mut hello = vec![0; usize::from(u16::from_be_bytes([record[3], record[4]]))];
            reader.read_exact(&mut hello).expect("the whole record");
            told.send((lines, record[0], hello)).expect("the test waits");
        });
        let proxies = Matcher::builder().https(format!("http://user:hunter2@{proxy}")).build();
        run(async {
            let connections = Connections::through(proxies, &Roots::system(), Some(Duration::from_secs(10)), None);
            assert!(get(&connections, "https://store.example/k").await.is_err(), "nobody spoke TLS");
        });
        let (lines, kind, hello) = hears.recv().expect("somebody connected");
        assert_eq!(lines[0], "CONNECT store.example:443 HTTP/1.1");
        assert!(lines.iter().any(|line| line.eq_ignore_ascii_case("Proxy-Authorization: Basic dXNlcjpodW50ZXIy")), "{lines:?}");
        assert_eq!(kind, 22, "a handshake");
        let contains = |text: &[u8]| hello.windows(text.len()).any(|window| window == text);
        assert!(contains(b"store.example"), "its name is asked for");
        // As who offers both writes it; that nothing is offered, the configuration says.
        assert!(!contains(b"\x02h2\x08http/1.1"), "HTTP/2 is not offered");
    }

    #[test]
    fn a_proxy_that_refuses_is_named_without_its_password() {
        let proxy = server(|_, stream| {
            head(&mut BufReader::new(stream.try_clone().expect("a descriptor")));
            answer(&stream, "407 Proxy Authentication Required", "");
        });
        let proxies = Matcher::builder().https(format!("http://user:hunter2@{proxy}")).build();
        run(async {
            let connections = Connections::through(proxies, &Roots::system(), Some(Duration::from_secs(10)), None);
            let error = get(&connections, "https://store.example/k").await.expect_err("refused");
            assert!(error.is_io(), "{error:?}");
            let (mut last, text): (&dyn Error, _) = (&error, format!("{error:?}"));
            while let Some(source) = last.source() {
                last = source;
            }
            assert_eq!(last.to_string(), format!("the proxy http://{proxy}: tunnel error: proxy authorization required"));
            assert!(!text.contains("hunter2") && !text.contains("dXNlcj"), "{text}");
        });
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for() {
        // Holds every connection and says nothing.
        let address = server(|_, stream| {
            thread::sleep(Duration::from_secs(600));
            drop(stream);
        });
        run(async {
            let error = get(&direct(Some(Duration::from_millis(50))), &format!("http://{address}/")).await.expect_err("no answer");
            assert!(error.is_timeout(), "{error:?}");
            let proxies = Matcher::builder().build();
            let connections = Connections::through(proxies, &Roots::system(), Some(Duration::from_millis(50)), None);
            let error = get(&connections, &format!("https://{address}/")).await.expect_err("no handshake");
            assert!(error.is_timeout(), "{error:?}");
            assert!(format!("{error:?}").contains("no connection in time"), "{error:?}");
        });
    }

    #[test]
    fn a_connection_that_was_given_up_is_not_used_again_and_times_have_their_own() {
        let address = server(echo);
        let number = |answer: HttpResponse| async move {
            let body = answer.into_body().collect().await.expect("the whole answer").to_bytes();
            String::from_utf8_lossy(&body).split(' ').next().expect("a number").to_owned()
        };
        let request = || Request::get(format!("http://{address}/")).body(SdkBody::empty()).expect("a request");
        run(async {
            let connections = direct(None);
            let mut given_up = Vec::new();
            for _ in 0..5 {
                let (captured, mut request) = (CaptureSmithyConnection::new(), request());
                request.extensions_mut().insert(captured.clone());
                let answer = connections.call(HttpRequest::try_from(request).expect("a request")).await.expect("an answer");
                captured.get().expect("the connection is known").poison();
                given_up.push(number(answer).await);
            }
            given_up.dedup();
            assert_eq!(given_up.len(), 5, "{given_up:?}");
        });
        let shared = client(Roots::system());
        let components = RuntimeComponentsBuilder::for_tests().build().expect("components");
        let of = |seconds: u64| {
            let settings = HttpConnectorSettings::builder().read_timeout(Duration::from_secs(seconds)).build();
            format!("{:?}", shared.http_connector(&settings, &components))
        };
        assert!(of(7).contains("7s") && of(8).contains("8s") && of(7).contains("7s"), "{}", of(8));
    }

    #[test]
    fn what_breaks_may_be_tried_again() {
        let address = server(|_, stream| drop(head(&mut BufReader::new(stream))));
        run(async {
            let error = get(&direct(None), &format!("http://{address}/")).await.expect_err("the connection ended");
            assert!(error.is_io() || error.as_other() == Some(ErrorKind::TransientError), "{error:?}");
            let plain = server(|_, stream| answer(&stream, "200 OK", "x"));
            let error = get(&direct(None), &format!("https://{plain}/")).await.expect_err("not TLS");
            assert!(error.is_io(), "{error:?}");
            let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
            let error = get(&direct(None), &format!("http://{nobody}/")).await.expect_err("nobody listens");
            assert!(error.is_io(), "{error:?}");
        });
    }
}
