//! Who may ask, and what is rather had.

use super::*;

#[test]
fn on_loopback_only_names_that_are_ours_are_answered() {
    let guests = Guests::of("127.0.0.1".parse().unwrap(), &["Backup.Example.org.".to_owned()]);
    for ours in [
        "localhost",
        "localhost:8043",
        "LOCALHOST",
        "a.localhost:1",
        "127.0.0.1:8043",
        "10.1.2.3",
        "[::1]",
        "[::1]:8043",
        "backup.example.org",
        "backup.example.org.:80",
    ] {
        assert!(guests.knows(ours), "{ours}");
    }
    for strange in [
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "notlocalhost",
        "localhost:99999",
        "localhost:x",
        "localhost:",
        "[::1",
        "[::1]x",
        "[::1]:",
        "::1",
        "user@localhost",
        "localhost/",
        "backup.example.org.evil",
    ] {
        assert!(!guests.knows(strange), "{strange}");
    }
    let open = Guests::of("0.0.0.0".parse().unwrap(), &[]);
    assert!(open.knows("whatever.example"), "whoever listens to the world answers to the names that the world has for it");
    assert!(!Guests::of("0.0.0.0".parse().unwrap(), &["backup.example.org".to_owned()]).knows("whatever.example"));
}

#[test]
fn open_metrics_go_to_those_who_would_rather_have_them() {
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for wants in ["application/openmetrics-text", prometheus, "text/html, APPLICATION/OpenMetrics-Text ; version=1.0.0"] {
        assert!(wants_open_metrics(wants), "{wants}");
    }
    for other in [
        "",
        "*/*",
        "text/plain",
        "text/html,*/*;q=0.8",
        "application/openmetrics-text;q=0.1,text/plain",
        "application/openmetrics-text;q=0",
        "application/openmetrics-text;q=x",
    ] {
        assert!(!wants_open_metrics(other), "{other}");
    }
}
