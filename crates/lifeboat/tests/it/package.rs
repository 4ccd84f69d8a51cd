//! What the Debian package is made of, each part given to who reads it for real: manual pages to groff, completions to the shells, the package
//! to dpkg. `install.rs` installs it as docs/install.md says, and has the units verified.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::cluster::{expect_success, temp_dir};
use crate::program::Program;

/// The sources, of which packages are made.
fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn text(output: std::process::Output) -> String {
    String::from_utf8(output.stdout).expect("text")
}

/// Every command with its words, from what help lists, hidden ones left out.
fn commands() -> Vec<Vec<String>> {
    let home = temp_dir();
    let mut found = vec![Vec::new()];
    let mut next = 0;
    while next < found.len() {
        let words: Vec<String> = found[next].clone();
        let help = Program::new(&home).args(&words).arg("--help").run().success().stdout;
        let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        let names =
            listed.filter(|line| line.starts_with("  ") && !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
        found.extend(names.map(|name| words.iter().cloned().chain([name.to_owned()]).collect()));
        next += 1;
    }
    assert!(found.len() > 50, "{found:?}");
    found
}

#[test]
fn every_command_has_a_manual_page_that_groff_reads() {
    let home = temp_dir();
    Program::new(&home).args(["man", "--out", "pages"]).run().success();
    let pages: BTreeSet<String> =
        fs::read_dir(home.path().join("pages")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let named = commands().into_iter().map(|words| format!("{}.1", [vec!["lifeboat".to_owned()], words].concat().join("-")));
    let expected: BTreeSet<String> = named.chain(["lifeboat.toml.5".to_owned()]).collect();
    assert_eq!(pages, expected);
    for page in &pages {
        // -ww: every warning; -K: as man does, which knows the encoding.
        let output = Command::new("groff")
            .args(["-man", "-Tutf8", "-Kutf8", "-ww", "-P-cbu"])
            .arg(home.path().join("pages").join(page))
            .stdin(Stdio::null())
            .output()
            .expect("run scripts/setup test");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{page}: {said}");
        let shown = text(output);
        for part in ["NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"] {
            assert!(shown.contains(part), "{page} has no {part}:\n{shown}");
        }
    }
    let shown = Program::new(&home).args(["man", "--out", "/proc/no"]).run();
    assert!(shown.code == Some(1) && shown.stderr.contains("hint: "), "{shown}");
}

#[test]
fn shells_complete_commands_and_options() {
    let home = temp_dir();
    let script = |shell: &str| {
        let path = home.path().join(format!("completions.{shell}"));
        fs::write(&path, Program::new(&home).args(["completions", shell]).run().success().stdout).unwrap();
        path
    };
    let shell = |program: &str, arguments: &[&str], script: &Path| {
        let mut command = Command::new(program);
        command.args(arguments).arg(script).env("HOME", home.path()).env("XDG_CONFIG_HOME", home.path().join(".config"));
        text(expect_success(&mut command))
    };
    let bash = "source \"$1\"; COMP_WORDS=(lifeboat wal ''); COMP_CWORD=2; _lifeboat lifeboat '' wal; printf '%s\\n' \"${COMPREPLY[@]}\"; \
                COMP_WORDS=(lifeboat restore --target-t); COMP_CWORD=2; _lifeboat lifeboat --target-t restore; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let answers = shell("bash", &["--noprofile", "--norc", "-c", bash, "bash"], &script("bash"));
    for word in ["push", "fetch", "--target-time"] {
        assert!(answers.lines().any(|line| line == word), "{word}: {answers}");
    }
    let fish = "source $argv[1]; complete -C 'lifeboat wal '; complete -C 'lifeboat restore --target-t'";
    let answers = shell("fish", &["--no-config", "-c", fish], &script("fish"));
    for word in ["push\t", "fetch\t", "--target-time\t"] {
        assert!(answers.lines().any(|line| line.starts_with(word)), "{word}: {answers}");
    }
    // Completing needs a terminal there; that it is loaded as a completion of lifeboat does not.
    let zsh = "autoload -U compinit && compinit -D && source \"$1\" && print -r -- \"${_comps[lifeboat]} $+functions[_lifeboat__subcmd__wal_commands]\"";
    let answers = shell("zsh", &["-f", "-c", zsh, "zsh"], &script("zsh"));
    assert_eq!(answers.trim(), "_lifeboat 1");
}

/// A package of the program that is tested, made by the script that makes all packages.
fn make_package(into: &Path, revision: &str) -> PathBuf {
    let mut script = Command::new(source("scripts/package"));
    script.args(["--quick", "--revision", revision, "--binary", env!("CARGO_BIN_EXE_lifeboat"), "--output"]).arg(into);
    script.env("DEBFULLNAME", "Ada Example").env("DEBEMAIL", "ada@example.org");
    let path = PathBuf::from(text(expect_success(&mut script)).trim());
    assert!(path.starts_with(into) && path.is_file(), "{path:?}");
    path
}

/// Two packages, the second of a higher version. Every test is a process of its own, and making one takes seconds: they are kept until the
/// program, or what else is in them, is another.
pub(crate) fn packages() -> [PathBuf; 2] {
    let parts = ["scripts", "deploy", "docs", "policies", "tools", "README.md", "CHANGELOG.md"].map(source);
    let files = parts.iter().flat_map(|part| walk(part).into_iter().chain([part.clone()])).chain([env!("CARGO_BIN_EXE_lifeboat").into()]);
    let newest =
        files.filter_map(|file| fs::metadata(file).ok()).map(|found| (found.mtime(), found.mtime_nsec())).max().expect("there are files");
    let name = format!("packages-{}-{}", newest.0, newest.1);
    let store = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let kept = store.join(&name);
    if !kept.is_dir() {
        for old in fs::read_dir(store).expect("cargo made it").flatten() {
            if old.file_name().to_string_lossy().starts_with("packages-") && old.file_name() != *name {
                let _ = fs::remove_dir_all(old.path());
            }
        }
        let directory = tempfile::tempdir_in(store).expect("own directory");
        for revision in ["1", "2"] {
            make_package(directory.path(), revision);
        }
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("own directory");
        // Another test that made them at the same time made the same.
        let _ = fs::rename(directory.path(), &kept);
    }
    let mut found: Vec<PathBuf> = fs::read_dir(&kept).expect("made above").map(|entry| entry.expect("own directory").path()).collect();
    found.sort();
    found.try_into().expect("two packages")
}

fn dpkg_deb(arguments: &[&str], package: &Path) -> String {
    text(expect_success(Command::new("dpkg-deb").args(arguments).arg(package)))
}

#[test]
fn a_package_has_what_it_should_and_is_made_the_same_again() {
    let [package, next] = &packages();
    let field =
        |package: &Path, name: &str| text(expect_success(Command::new("dpkg-deb").arg("--field").arg(package).arg(name))).trim().to_owned();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((field(package, "Version"), field(next, "Version")), (format!("{version}-1"), format!("{version}-2")));
    assert_eq!(field(package, "Maintainer"), "Ada Example <ada@example.org>");
    let depends = field(package, "Depends");
    // libpq is opened when a server is first spoken to, so that no tool finds it in the program.
    for needed in ["libc6 (>= ", "libpq5 (>= ", "util-linux"] {
        assert!(depends.contains(needed), "{needed}: {depends}");
    }
    let listing = dpkg_deb(&["--contents"], package);
    let files: Vec<&str> =
        listing.lines().filter(|line| !line.starts_with('d')).filter_map(|line| line.split_whitespace().nth(5)).collect();
    for file in [
        "bin/lifeboat",
        "lib/systemd/system/lifeboat-agent.service",
        "lib/systemd/system/lifeboat-backup.timer",
        "lib/sysusers.d/lifeboat.conf",
        "share/bash-completion/completions/lifeboat",
        "share/zsh/vendor-completions/_lifeboat",
        "share/fish/vendor_completions.d/lifeboat.fish",
        "share/man/man1/lifeboat-wal-push.1.gz",
        "share/man/man5/lifeboat.toml.5.gz",
        "share/doc/lifeboat/runbook.md",
        "share/doc/lifeboat/copyright",
        "share/doc/lifeboat/third-party.txt.gz",
        "share/doc/lifeboat/examples/lifeboat.toml",
        "share/doc/lifeboat/examples/kubernetes/agent/kustomization.yaml",
        "share/doc/lifeboat/examples/container/Containerfile",
        "share/doc/lifeboat/examples/prometheus/lifeboat.rules.yml",
        "share/doc/lifeboat/examples/grafana/lifeboat.json",
        "share/lifeboat/rescue/rescue.py",
    ] {
        assert!(files.contains(&format!("./usr/{file}").as_str()), "{file}:\n{listing}");
    }
    // No configuration that could be taken for the user's, and nothing that a removal could take from anybody.
    let outside: Vec<_> = files.iter().filter(|file| !file.starts_with("./usr/")).collect();
    assert!(outside.is_empty(), "{outside:?}");
    let odd: Vec<&str> = listing
        .lines()
        .filter(|line| !line.contains(" root/root ") || line.get(1..10).is_some_and(|mode| mode.contains(['s', 't'])))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
    // What the pages of the package name stands beside them.
    let directory = temp_dir();
    expect_success(Command::new("dpkg-deb").arg("--extract").arg(package).arg(directory.path()));
    let docs = directory.path().join("usr/share/doc/lifeboat");
    for page in ["README.md", "install.md"] {
        let page = fs::read_to_string(docs.join(page)).unwrap();
        let links = page.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for link in links.filter(|link| !link.is_empty() && !link.contains("://") && !link.starts_with("../")) {
            assert!(docs.join(link).exists() || source(link).exists(), "{link}");
        }
    }
    let licences = text(expect_success(Command::new("gzip").arg("-dc").arg(docs.join("third-party.txt.gz"))));
    for library in ["\naws-lc-rs ", "\nserde ", "Permission is hereby granted"] {
        assert!(licences.contains(library), "{library}");
    }
    let again = temp_dir();
    let same = make_package(again.path(), "1");
    assert!(fs::read(package).unwrap() == fs::read(same).unwrap(), "two packages of the same sources differ");
}

/// A system of its own, as far as dpkg is concerned, with what somebody has on it that no package may touch.
struct Host {
    root: TempDir,
    /// Path, bytes and mode of everything that is the user's.
    precious: Vec<(String, Vec<u8>, u32)>,
}

impl Host {
    fn new() -> Host {
        let root = temp_dir();
        let path = |name: &str| root.path().join(name);
        for directory in ["etc/lifeboat", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log", "tmp", "usr"] {
            fs::create_dir_all(path(directory)).unwrap();
        }
        fs::write(path("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        fs::write(path("etc/group"), "root:x:0:\n").unwrap();
        // The packages that ours needs are there, in the versions that this machine has.
        let depends = text(expect_success(Command::new("dpkg-deb").arg("--field").arg(&packages()[0]).arg("Depends")));
        let names: Vec<&str> = depends.split(',').filter_map(|one| one.split_whitespace().next()).collect();
        let mut status = String::new();
        for name in names {
            let known = text(expect_success(Command::new("dpkg-query").args(["--status", name])));
            // Without what they need themselves, and their lists of files.
            let wanted = ["Package:", "Status:", "Version:", "Architecture:", "Multi-Arch:", "Maintainer:", "Provides:"];
            let lines = known.lines().filter(|line| wanted.iter().any(|field| line.starts_with(field)));
            lines.for_each(|line| status.push_str(&format!("{line}\n")));
            status.push_str("Description: here\n\n");
            fs::write(path(&format!("var/lib/dpkg/info/{name}.list")), "").unwrap();
        }
        fs::write(path("var/lib/dpkg/status"), status).unwrap();
        let mut host = Host { root, precious: Vec::new() };
        for (name, mode) in [
            ("etc/lifeboat/lifeboat.toml", 0o640),
            ("etc/lifeboat/signing.key", 0o600),
            ("etc/systemd/system/lifeboat-agent.service.d/own.conf", 0o644),
            ("var/lib/lifeboat/spool/000000010000000000000001", 0o600),
            ("var/lib/lifeboat/audit/journal", 0o600),
            ("var/lib/lifeboat-receive/spool/0000000100000000000000AA", 0o600),
            ("var/lib/postgresql/.config/lifeboat/identity.txt", 0o600),
            ("srv/backups/lifeboat.json", 0o644),
            ("srv/backups/packs/ab/abcd", 0o444),
        ] {
            let (path, bytes) = (host.path(name), format!("of the user: {name}").into_bytes());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            host.precious.push((name.to_owned(), bytes, mode));
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// dpkg, with the scripts of the package run as on a system in that directory.
    fn dpkg(&self, arguments: &[&str], package: Option<&Path>) -> String {
        let output = expect_success(&mut self.dpkg_command(arguments, package));
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    fn dpkg_command(&self, arguments: &[&str], package: Option<&Path>) -> Command {
        // Who is not root is so in a namespace, in which files are root's.
        let mut command = Command::new(if rustix::process::geteuid().is_root() { "env" } else { "unshare" });
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.arg("dpkg").arg(format!("--root={}", self.root.path().display())).arg("--force-script-chrootless");
        // Not into the machine's own log, and not as somebody configured dpkg for themselves.
        command.arg(format!("--log={}", self.path("var/log/dpkg.log").display())).env("HOME", self.root.path());
        command
            .args(arguments)
            .args(package)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        command
    }

    /// Everything of the user's is as it was.
    #[track_caller]
    fn assert_precious(&self, when: &str) {
        for (name, bytes, mode) in &self.precious {
            let found = fs::read(self.path(name)).unwrap_or_else(|error| panic!("{when}: {name}: {error}"));
            assert!(found == *bytes, "{when}: {name} was changed");
            assert_eq!(fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o7777, *mode, "{when}: {name}");
        }
    }

    /// What dpkg thinks of our package; empty: it knows nothing of it.
    fn state(&self) -> String {
        let admin = format!("--admindir={}", self.path("var/lib/dpkg").display());
        let output = Command::new("dpkg-query")
            .arg(admin)
            .args(["--show", "--showformat=${db:Status-Status} ${Version}", "lifeboat"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn installing_upgrading_removing_and_purging_leave_everything_that_is_the_users() {
    let host = Host::new();
    let [first, second] = &packages();
    let version = env!("CARGO_PKG_VERSION");
    let lacks = Host::new();
    let status = fs::read_to_string(lacks.path("var/lib/dpkg/status")).unwrap();
    let without: String =
        status.split("\n\n").filter(|stanza| !stanza.starts_with("Package: libpq5")).map(|stanza| format!("{stanza}\n\n")).collect();
    fs::write(lacks.path("var/lib/dpkg/status"), without).unwrap();
    let refused = lacks.dpkg_command(&["--install"], Some(first)).output().unwrap();
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("libpq5"),
        "installed without libpq: {refused:?}"
    );

    let said = host.dpkg(&["--install"], Some(first));
    assert!(said.contains("nothing runs yet") && said.contains("install.md"), "{said}");
    assert_eq!(host.state(), format!("installed {version}-1"));
    host.assert_precious("installed");
    let runs = expect_success(Command::new(host.path("usr/bin/lifeboat")).arg("--version"));
    assert_eq!(text(runs).trim(), format!("lifeboat {version}"));
    let passwd = fs::read_to_string(host.path("etc/passwd")).unwrap();
    let user: Vec<&str> = passwd.lines().filter(|line| line.starts_with("lifeboat:")).collect();
    assert!(user.len() == 1 && user[0].ends_with(":/var/lib/lifeboat-receive:/usr/sbin/nologin"), "{passwd}");
    // Nothing is enabled: that would start it with the next boot.
    let enabled = || walk(&host.path("etc/systemd")).into_iter().filter(|path| path.is_symlink()).collect::<Vec<_>>();
    assert_eq!(enabled(), Vec::<PathBuf>::new());

    // The administrator enables it: systemctl's own links.
    let wants = host.path("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants).unwrap();
    std::os::unix::fs::symlink("/usr/lib/systemd/system/lifeboat-agent.service", wants.join("lifeboat-agent.service")).unwrap();
    std::os::unix::fs::symlink("/usr/lib/systemd/system/cron.service", wants.join("cron.service")).unwrap();

    let said = host.dpkg(&["--install"], Some(second));
    assert!(
        !said.contains("nothing runs yet") && !said.contains("archive_command"),
        "an upgrade is no first installation, and no removal: {said}"
    );
    assert_eq!(host.state(), format!("installed {version}-2"));
    host.assert_precious("upgraded");
    assert_eq!(enabled().len(), 2);
    assert_eq!(fs::read_to_string(host.path("etc/passwd")).unwrap(), passwd);

    let said = host.dpkg(&["--remove", "lifeboat"], None);
    assert!(!host.path("usr/bin/lifeboat").exists(), "{said}");
    host.assert_precious("removed");
    assert_eq!(enabled().len(), 2, "a later installation goes on where this one was");
    let left: Vec<_> = walk(&host.path("usr")).into_iter().filter(|path| !path.is_dir()).collect();
    assert!(left.is_empty(), "{left:?}");

    host.dpkg(&["--install"], Some(second));
    host.assert_precious("installed again");
    let said = host.dpkg(&["--purge", "lifeboat"], None);
    for place in ["/etc/lifeboat", "/var/lib/lifeboat", "/var/lib/postgresql/.config/lifeboat", "restore identity"] {
        assert!(said.contains(place), "{place}: {said}");
    }
    host.assert_precious("purged");
    assert_eq!(host.state(), "");
    assert_eq!(enabled(), [wants.join("cron.service")], "a link to a unit that is gone, or one of somebody else's");
}

/// All paths below a directory.
fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
