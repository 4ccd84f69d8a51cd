//! A small instance of Sigstore out of openssl alone: a certificate authority and a timestamp authority, without logs. Enough to see what an identity and a
//! trusted time do to a signature; what logs do is for tests against the real thing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lifeboat_core::attestation::{PAYLOAD_TYPE, Statement};
use lifeboat_engine::signing::Roots;
use serde_json::{Value, json};

/// The identity provider of its certificates.
pub(crate) const ISSUER: &str = "https://accounts.example.org";

/// Whom its certificates are for.
pub(crate) const SUBJECT: &str = "https://ci.example.org/acme/backup";

/// An authority for certificates and one for timestamps, made with openssl.
pub(crate) struct Instance {
    directory: tempfile::TempDir,
}

impl Instance {
    pub(crate) fn new() -> Self {
        let instance = Self { directory: tempfile::tempdir().unwrap() };
        let extensions = format!(
            "[ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n\
             [tsa]\nextendedKeyUsage=critical,timeStamping\nkeyUsage=critical,digitalSignature\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n\
             [leaf]\nextendedKeyUsage=codeSigning\nkeyUsage=critical,digitalSignature\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n\
             subjectAltName=critical,URI:{SUBJECT}\n1.3.6.1.4.1.57264.1.8=ASN1:UTF8String:{ISSUER}\n\
             [req]\ndistinguished_name=dn\n[dn]\n\
             [tsaconf]\ndefault_tsa=one\n[one]\nserial={dir}/serial\ndigests=sha256\nsigner_digest=sha256\ndefault_policy=1.2.3.4\n\
             accuracy=secs:1\nordering=no\ntsa_name=no\ness_cert_id_chain=no\ness_cert_id_alg=sha256\n",
            dir = instance.directory.path().display()
        );
        fs::write(instance.at("x.cnf"), extensions).unwrap();
        fs::write(instance.at("serial"), "01\n").unwrap();
        for (name, subject) in [("tsaroot", "/O=test/CN=tsa root"), ("caroot", "/O=test/CN=ca root")] {
            instance.key(name);
            let key = format!("{name}.key");
            let pem = format!("{name}.pem");
            instance.openssl(&[
                "req",
                "-x509",
                "-new",
                "-key",
                &key,
                "-subj",
                subject,
                "-days",
                "3650",
                "-config",
                "x.cnf",
                "-extensions",
                "ca",
                "-out",
                &pem,
            ]);
        }
        instance.key("tsa");
        instance.certify("tsa", "tsaroot", "tsa", "/O=test/CN=tsa");
        instance
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(&self.directory).output().expect("openssl is installed");
        assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn key(&self, name: &str) {
        let out = format!("{name}.key");
        self.openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &out]);
    }

    fn certify(&self, name: &str, by: &str, section: &str, subject: &str) {
        let [key, csr, pem] = ["key", "csr", "pem"].map(|end| format!("{name}.{end}"));
        let [ca, ca_key] = ["pem", "key"].map(|end| format!("{by}.{end}"));
        self.openssl(&["req", "-new", "-key", &key, "-subj", subject, "-config", "x.cnf", "-out", &csr]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "x.cnf",
            "-extensions",
            section,
            "-out",
            &pem,
        ]);
    }

    fn der(&self, pem: &str) -> String {
        let text = fs::read_to_string(self.at(pem)).unwrap();
        text.lines().filter(|line| !line.starts_with("-----")).collect()
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots::from_json(&self.trusted_root()).unwrap()
    }

    /// Its `trusted_root.json`.
    pub(crate) fn trusted_root(&self) -> String {
        let valid = json!({"start": "2020-01-01T00:00:00Z"});
        let root = json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1", "tlogs": [], "ctlogs": [],
            "certificateAuthorities": [{
                "subject": {"organization": "test", "commonName": "ca"}, "uri": "https://ca.example.org",
                "certChain": {"certificates": [{"rawBytes": self.der("caroot.pem")}]}, "validFor": valid,
            }],
            "timestampAuthorities": [{
                "subject": {"organization": "test", "commonName": "tsa"}, "uri": "https://tsa.example.org",
                "certChain": {"certificates": [{"rawBytes": self.der("tsa.pem")}, {"rawBytes": self.der("tsaroot.pem")}]}, "validFor": valid,
            }],
        });
        root.to_string()
    }

    /// The bundle with a timestamp over its signature.
    pub(crate) fn stamped(&self, bundle: &str) -> Value {
        let mut bundle: Value = serde_json::from_str(bundle).unwrap();
        let signature = BASE64.decode(bundle["dsseEnvelope"]["signatures"][0]["sig"].as_str().unwrap()).unwrap();
        fs::write(self.at("sig"), signature).unwrap();
        self.openssl(&["ts", "-query", "-data", "sig", "-sha256", "-cert", "-out", "q.tsq"]);
        self.openssl(&[
            "ts",
            "-reply",
            "-config",
            "x.cnf",
            "-section",
            "one",
            "-queryfile",
            "q.tsq",
            "-signer",
            "tsa.pem",
            "-inkey",
            "tsa.key",
            "-out",
            "r.tsr",
        ]);
        let token = BASE64.encode(fs::read(self.at("r.tsr")).unwrap());
        bundle["verificationMaterial"]["timestampVerificationData"] = json!({"rfc3161Timestamps": [{"signedTimestamp": token}]});
        bundle
    }

    /// A bundle by the holder of a fresh certificate, with a timestamp.
    pub(crate) fn by_identity(&self, statement: &Statement) -> Value {
        self.key("leaf");
        self.certify("leaf", "caroot", "leaf", "/CN=ignored");
        let payload = statement.to_bytes();
        let pae = sigstore_types::dsse::pae(PAYLOAD_TYPE, &payload);
        fs::write(self.at("pae"), pae).unwrap();
        self.openssl(&["dgst", "-sha256", "-sign", "leaf.key", "-out", "leaf.sig", "pae"]);
        let bundle = json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"certificate": {"rawBytes": self.der("leaf.pem")}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": BASE64.encode(&payload), "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": BASE64.encode(fs::read(self.at("leaf.sig")).unwrap())}],
            },
        });
        self.stamped(&bundle.to_string())
    }
}
