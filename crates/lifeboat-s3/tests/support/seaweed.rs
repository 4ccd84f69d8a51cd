//! SeaweedFS on loopback: a real S3 server with versions and Object Lock, in a directory of its own, ended with the value.
//!
//! Used by the tests of several crates. It must not skip: where the server is not installed, the test fails and says how to install it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// May do everything.
pub(crate) const ACCESS_KEY: &str = "AKLIFEBOATTEST";
/// The secret of [`ACCESS_KEY`].
pub(crate) const SECRET_KEY: &str = "a-secret-of-the-tests";
/// May read and list.
pub(crate) const READER_KEY: &str = "AKLIFEBOATREAD";
/// The secret of [`READER_KEY`].
pub(crate) const READER_SECRET: &str = "another-secret-of-the-tests";

/// Who may do what a bucket's policy allows them, and nothing by themselves: name, access key, secret.
pub(crate) const ROLES: [(&str, &str, &str); 3] = [
    ("writer", "AKLIFEBOATWRITER", "a-writers-secret-of-the-tests"),
    ("restorer", "AKLIFEBOATRESTORER", "a-restorers-secret-of-the-tests"),
    ("janitor", "AKLIFEBOATJANITOR", "a-janitors-secret-of-the-tests"),
];

/// How long the server may take to answer. Generous: it only ends tests that would hang for ever.
const DEADLINE: Duration = Duration::from_secs(90);

/// Ports of one server: four services with two each, one more that cannot be switched off, and TLS.
const PORTS: usize = 11;

/// A running server.
pub(crate) struct Seaweed {
    child: Child,
    port: u16,
    tls_port: u16,
    directory: PathBuf,
    _place: tempfile::TempDir,
}

impl Seaweed {
    /// Starts a server and waits until it answers.
    pub(crate) fn start() -> Self {
        Self::start_with(false)
    }

    /// The same, also with TLS, by a certificate of an authority of its own.
    pub(crate) fn start_tls() -> Self {
        Self::start_with(true)
    }

    fn start_with(tls: bool) -> Self {
        let program = setting("LIFEBOAT_TEST_WEED").expect("LIFEBOAT_TEST_WEED is not set: run scripts/setup test");
        assert!(Path::new(&program).is_file(), "SeaweedFS is not at {program}: run scripts/setup test");
        // Between the choice of a port and its use, somebody else may take it.
        for _ in 0..5 {
            if let Some(server) = Self::try_start(&program, tls) {
                return server;
            }
        }
        panic!("SeaweedFS did not start on any of five sets of ports");
    }

    fn try_start(program: &str, tls: bool) -> Option<Self> {
        let place = tempfile::Builder::new().prefix("lb-weed-").tempdir().expect("can make a temporary directory");
        let directory = place.path().to_owned();
        let data = directory.join("data");
        fs::create_dir(&data).expect("own directory");
        let identity = |name: &str, access: &str, secret: &str, actions: &str| {
            format!(
                "{{\"name\":\"{name}\",\"credentials\":[{{\"accessKey\":\"{access}\",\"secretKey\":\"{secret}\"}}],\"actions\":[{actions}]}}"
            )
        };
        let all = identity("admin", ACCESS_KEY, SECRET_KEY, "\"Admin\",\"Read\",\"Write\",\"List\",\"Tagging\"");
        let reader = identity("reader", READER_KEY, READER_SECRET, "\"Read\",\"List\"");
        let roles: String = ROLES.iter().map(|(name, access, secret)| format!(",{}", identity(name, access, secret, ""))).collect();
        fs::write(directory.join("s3.json"), format!("{{\"identities\":[{all},{reader}{roles}]}}")).expect("own directory");
        let ports = free_ports();
        let mut command = Command::new(program);
        command.arg("mini").arg(format!("-dir={}", data.display())).arg(format!("-s3.config={}", directory.join("s3.json").display()));
        // Without these it listens on every interface, and two of them clash on fixed ports. Every bucket takes seven volumes.
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]);
        command.args(["-volume.max=600", "-master.volumeSizeLimitMB=64", "-master.electionTimeout=1s", "-master.telemetry=false"]);
        let names = ["s3", "master", "volume", "filer", "admin"];
        for (name, pair) in names.iter().zip(ports.chunks(2)) {
            command.arg(format!("-{name}.port={}", pair[0])).arg(format!("-{name}.port.grpc={}", pair[1]));
        }
        if tls {
            make_certificates(&directory);
            command.arg(format!("-s3.port.https={}", ports[10]));
            command.arg(format!("-s3.cert.file={}", directory.join("cert.pem").display()));
            command.arg(format!("-s3.key.file={}", directory.join("key.pem").display()));
        }
        let log = File::create(directory.join("log")).expect("own directory");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("own file")).stderr(log);
        command.env_clear().env("HOME", &directory).env("WEED_S3_SSE_KEY", "a-key-of-the-tests").current_dir(&directory);
        let child = command.spawn().expect("SeaweedFS can be run");
        let mut server = Self { child, port: ports[0], tls_port: ports[10], directory, _place: place };
        let begun = Instant::now();
        while !server.is_healthy() {
            if server.child.try_wait().expect("own child").is_some() {
                return None;
            }
            assert!(begun.elapsed() < DEADLINE, "SeaweedFS did not answer:\n{}", server.log());
            thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// `https://127.0.0.1:PORT` of one with TLS.
    pub(crate) fn tls_endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.tls_port)
    }

    /// The authority that signed its certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The port of its S3 service.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What it printed.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn is_healthy(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.write_all(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).is_ok() && &answer[9..] == b"200"
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        // Nothing of it is needed any more, and an orderly end takes seconds.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authority, and a certificate by it for loopback.
fn make_certificates(directory: &Path) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output();
        let output = output.expect("openssl can be run: run scripts/setup test");
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1\n").expect("own directory");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=tests"));
    openssl(&format!("req {key} -keyout key.pem -out request.pem -subj /CN=localhost"));
    openssl("x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names");
}

/// Ports that nobody listens on now.
fn free_ports() -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..PORTS).map(|_| TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("bound").port()).collect()
}

/// A setting of the machine's test tools: from the environment, else from the file that `scripts/setup` wrote.
fn setting(variable: &str) -> Option<String> {
    if let Ok(value) = std::env::var(variable) {
        return Some(value);
    }
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/env")).ok()?;
    let prefix = format!("export {variable}=");
    let quoted = text.lines().find_map(|line| line.strip_prefix(&prefix))?;
    // As bash's printf %q writes it: a backslash before what is special, two quotes for nothing.
    (quoted != "''").then(|| quoted.replace('\\', ""))
}
