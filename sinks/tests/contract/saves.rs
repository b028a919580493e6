//! Home timelines that are saved, and copied.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use feedmill_model::{HomeSink, PackedEntry, Parameters, StoreError, Time, View};
use feedmill_sinks::{LocalHome, Saved};
use tempfile::TempDir;

use crate::home::{START, active, closed, hot, id, packed};
use crate::index::position;

/// So many that shards have more than one segment.
const VIEWERS: i64 = 100_000;

fn apply(home: &LocalHome, time: Time, viewers: impl Iterator<Item = i64>, entry: PackedEntry) {
    let deliveries: Vec<_> = viewers.map(|viewer| (viewer, entry, 1)).collect();
    home.apply(&mut closed(time, vec![], &deliveries)).unwrap();
}

/// A store in which every viewer has an entry, some have two, and some follow hot accounts.
fn filled(dir: &Path) -> LocalHome {
    let home = LocalHome::open(dir, Parameters::default());
    let records = (0..VIEWERS).flat_map(|viewer| {
        let hot = (viewer % 10 == 0).then(|| [hot(viewer, viewer + 1, 1), hot(viewer, i64::MAX, 1)]);
        std::iter::once(active(viewer, 1)).chain(hot.into_iter().flatten())
    });
    home.apply(&mut closed(START, records.collect(), &[])).unwrap();
    apply(&home, START + 1, 0..VIEWERS, packed(id(1)));
    apply(&home, START + 2, (0..VIEWERS).step_by(7), packed(id(2)));
    home
}

fn save(home: &LocalHome) -> Saved {
    home.save(|| Ok(()), || true).unwrap().expect("there is something to save")
}

/// Everything in the store, as the views say it.
fn content(home: &LocalHome) -> Vec<Option<feedmill_sinks::HomeRecord>> {
    (0..VIEWERS).map(|viewer| home.record(viewer)).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn opened(dir: &Path) -> LocalHome {
    let home = LocalHome::open(dir, Parameters::default());
    home.load();
    home
}

#[test]
fn a_store_that_is_filled_gives_no_record_and_is_not_saved_before_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let home = filled(dir.path());
    save(&home);
    home.fill();
    assert!(home.is_to_be_filled());
    // Slices of the load: the record, then what it holds, some of it before the horizon.
    let old = packed(5);
    home.apply(&mut closed(1, vec![active(7, 1), hot(7, 3, 1)], &[])).unwrap();
    home.apply(&mut closed(2, vec![], &[(7, packed(id(1)), 1), (7, old, 1), (8, packed(id(1)), 1)])).unwrap();
    home.apply(&mut closed(3, vec![], &[(7, packed(id(2)), 1)])).unwrap();
    assert_eq!((home.record(7), home.position(), home.saved()), (None, None, None));
    assert_eq!(home.save(|| Ok(()), || true).unwrap(), None);
    // The load's own time brings the floor.
    let floor = Parameters::default().horizon(START + 5);
    home.apply(&mut feedmill_model::HomeClosed { floor: Some(floor), ..closed(START + 5, vec![], &[]) }).unwrap();
    assert!(!home.is_to_be_filled());
    let record = home.record(7).unwrap();
    assert_eq!((record.floor, record.hot, record.entries), (floor, vec![3], vec![packed(id(2)), packed(id(1))]));
    assert_eq!((home.record(8), home.anomalies()), (None, 0));
    save(&home);
    assert_eq!(opened(dir.path()).record(7), home.record(7));
}

#[test]
fn a_save_is_read_whole_and_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let home = filled(dir.path());
    assert_eq!((home.saved(), home.position()), (None, Some(position(START + 2))));
    assert_eq!(save(&home).position, position(START + 2));
    assert_eq!(home.saved(), Some(position(START + 2)));
    let again = LocalHome::open(dir.path(), Parameters::default());
    assert_eq!((again.saved(), again.position()), (home.saved(), home.position()));
    // A record is there before all are loaded.
    assert_eq!(again.record(70), home.record(70));
    again.load();
    assert_eq!((again.viewers(), again.anomalies()), (home.viewers(), 0));
    assert!(content(&again) == content(&home));
    // A time that the save has already changes nothing; later ones do.
    apply(&again, START + 2, 0..VIEWERS, packed(id(2)));
    apply(&home, START + 3, 0..VIEWERS, packed(id(3)));
    apply(&again, START + 3, 0..VIEWERS, packed(id(3)));
    assert!(content(&again) == content(&home));
    assert_eq!(again.anomalies(), 0);
}

#[test]
fn only_segments_that_changed_are_written_and_old_files_go() {
    let dir = tempfile::tempdir().unwrap();
    let home = filled(dir.path());
    let all = save(&home).bytes;
    apply(&home, START + 3, std::iter::once(5), packed(id(3)));
    let saved = save(&home);
    assert_eq!(saved.position, position(START + 3));
    assert!((1..all / 50).contains(&saved.bytes), "{} of {all} bytes", saved.bytes);
    // Nothing has changed, and yet the save is of a later time.
    home.apply(&mut closed(START + 4, vec![], &[])).unwrap();
    assert_eq!(save(&home), Saved { position: position(START + 4), bytes: 0 });
    assert_eq!(opened(dir.path()).position(), Some(position(START + 4)));
    // Each of these saves changes a part: what they leave in old files is bounded.
    for number in 5..40 {
        let part = (0..VIEWERS).filter(|viewer| (viewer / 2_000) as u64 % 5 == number % 5);
        apply(&home, START + number, part, packed(id(number)));
        save(&home);
        let bytes: u64 = files(dir.path()).iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(bytes < 4 * all, "{bytes} bytes after {number} saves; the first took {all}");
    }
    let again = opened(dir.path());
    assert!(content(&again) == content(&home));
    // Before the first save of another process nothing of this one is touched.
    assert_eq!(again.anomalies(), 0);
}

#[test]
fn a_save_that_does_not_end_leaves_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let home = filled(dir.path());
    save(&home);
    let (before, at) = (content(&home), home.position());
    apply(&home, START + 3, 0..VIEWERS, packed(id(3)));
    let mut segments = 0;
    let broken_off = home.save(
        || panic!("it does not come so far"),
        || {
            segments += 1;
            segments < 40
        },
    );
    assert_eq!(broken_off.unwrap(), None);
    let refused = || StoreError { store: "index", tried: "be durable".into(), source: "the disk is full".into() };
    home.save(|| Err(refused()), || true).unwrap_err();
    assert_eq!(home.saved(), at);
    let again = opened(dir.path());
    assert_eq!(again.position(), at);
    assert!(content(&again) == before);
    // The next one that ends takes away what these have left.
    save(&home);
    assert_eq!(files(dir.path()).len(), 2);
    assert!(content(&opened(dir.path())) == content(&home));
}

/// Changes a byte in the middle of a file.
fn flip(path: &Path) {
    let mut file = fs::File::options().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.write_all(&[byte[0] ^ 0x20]).unwrap();
}

fn saved() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    save(&filled(dir.path()));
    dir
}

#[test]
fn a_save_that_cannot_be_used_is_dropped() {
    let spoil: [fn(&Path); 5] = [
        |dir| flip(&dir.join("manifest")),
        |dir| fs::write(dir.join("manifest"), "").unwrap(),
        |dir| flip(&dir.join("segments-0")),
        |dir| fs::remove_file(dir.join("segments-0")).unwrap(),
        |dir| {
            let file = fs::File::options().write(true).open(dir.join("segments-0")).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        },
    ];
    for (number, spoil) in spoil.iter().enumerate() {
        let dir = saved();
        spoil(dir.path());
        let home = opened(dir.path());
        assert_eq!((home.viewers(), home.position(), home.saved()), (0, None, None), "number {number}");
        // It goes on as a new store does.
        home.apply(&mut closed(START + 9, vec![active(1, 1)], &[(1, packed(id(9)), 1)])).unwrap();
        save(&home);
        assert_eq!(opened(dir.path()).record(1), home.record(1), "number {number}");
        assert_eq!(files(dir.path()).len(), 2, "number {number}");
    }
}

#[test]
fn a_save_is_of_its_parameters() {
    let dir = saved();
    for parameters in [
        Parameters { fanout_days: 29, ..Parameters::default() },
        Parameters { active_days: 29, ..Parameters::default() },
    ] {
        let home = LocalHome::open(dir.path(), parameters);
        home.load();
        assert_eq!((home.viewers(), home.position()), (0, None));
    }
    let home = LocalHome::open(dir.path(), Parameters { home_max: 1, home_keep: 0, ..Parameters::default() });
    home.load();
    assert_eq!(home.viewers() as i64, VIEWERS);
}

#[test]
fn a_copy_is_of_one_time_while_the_store_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let home = filled(&dir.path().join("home"));
    let full = home.copy_to(&dir.path().join("copies"), 1_000).err().unwrap().to_string();
    assert!(full.contains("may be used there"), "{full}");
    let copy = home.copy_to(&dir.path().join("copies"), u64::MAX).unwrap();
    assert!(files(&dir.path().join("copies")).is_empty(), "the file has no name");
    let floors: Vec<_> = (0..VIEWERS).map(|viewer| (viewer, home.record(viewer).unwrap().floor)).collect();
    let seven = home.record(7).unwrap();
    apply(&home, START + 3, 0..VIEWERS, packed(id(3)));
    home.apply(&mut closed(START + 4, vec![active(7, -1)], &[])).unwrap();

    let mut copied = Vec::new();
    copy.floors(START + 2, |viewer, floor| copied.push((viewer, floor))).unwrap();
    copied.sort_unstable();
    assert_eq!(copied, floors);
    let keys = |view| {
        let mut keys = Vec::new();
        copy.scan(view, START + 2, &mut |key, value| {
            assert_eq!(value, "");
            keys.push(key);
        })
        .unwrap();
        keys
    };
    assert_eq!(keys(View::Active).len() as i64, VIEWERS);
    assert!(keys(View::VerifiedFollowing).contains(&format!("10 {}", i64::MAX)));
    let home_keys = keys(View::Home);
    assert_eq!(home_keys.len() as i64, VIEWERS + (VIEWERS + 6) / 7);
    let of_seven: Vec<_> = home_keys.iter().filter(|key| key.starts_with("7 ")).cloned().collect();
    let expected: Vec<_> = seven.entries.iter().map(|entry| format!("7 {} t", entry.id())).collect();
    assert_eq!(of_seven, expected);
}
