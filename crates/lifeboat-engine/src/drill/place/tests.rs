//! A place that is taken down while somebody works in it.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::restore::tree::make_directory;

fn settings(parent: &Path) -> PlaceSettings {
    PlaceSettings {
        drill: "ended".into(),
        parent: parent.to_owned(),
        temporary: std::env::temp_dir(),
        forbidden: Vec::new(),
        room: 1,
        user: None,
        require_network: false,
        host: "host".into(),
    }
}

fn parent() -> tempfile::TempDir {
    let parent = tempfile::tempdir().unwrap();
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
    parent
}

#[test]
fn a_restore_that_goes_on_does_not_bring_a_place_back() {
    let parent = parent();
    let place = Place::make(&settings(parent.path())).unwrap();
    let (pgdata, directory) = (place.pgdata(), place.directory().to_owned());
    fs::create_dir(&pgdata).unwrap();
    let done = AtomicBool::new(false);
    let there = std::thread::scope(|scope| {
        scope.spawn(|| {
            let database = pgdata.join("base/1");
            for number in 0.. {
                if done.load(Ordering::SeqCst) {
                    return;
                }
                // As a restore does it: the file, and where its directory is missing that one first.
                let _ = make_directory(&pgdata, &database).and_then(|()| File::create(database.join(number.to_string())));
                std::thread::yield_now();
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        place.remover().run();
        let there = directory.exists();
        std::thread::sleep(Duration::from_millis(300));
        done.store(true, Ordering::SeqCst);
        there
    });
    assert!(!there, "it is there when the remover is through");
    assert!(!directory.exists(), "it came back");
    assert!(place.is_ended());
}

#[test]
fn a_place_can_be_taken_down_before_it_is_whole_and_none_is_made_too_late() {
    let parent = parent();
    let run = |remover: Remover| {
        remover.run();
        true
    };
    assert!(matches!(Place::make_known(&settings(parent.path()), &run), Err(PlaceError::Make { .. } | PlaceError::Ended)));
    assert!(matches!(Place::make_known(&settings(parent.path()), &|_| false), Err(PlaceError::Ended)));
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
}
