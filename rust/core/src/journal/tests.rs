use std::fs;
use std::io::Write;
use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    (folder, path)
}

fn records(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn reopened(path: &Path) -> Journal {
    Journal::open(path, false).unwrap()
}

#[test]
fn what_was_appended_comes_back_in_order() {
    let (_folder, path) = place();
    let mut journal = Journal::open(&path, true).unwrap();
    journal.append(&records(&["one", "two"]), true).unwrap();
    journal.append(&records(&["three"]), false).unwrap();
    assert_eq!(journal.read().unwrap(), records(&["one", "two", "three"]));
    assert!(journal.read().unwrap().is_empty());
    assert_eq!(reopened(&path).read().unwrap(), records(&["one", "two", "three"]));
}

#[test]
fn two_openings_see_each_other() {
    let (_folder, path) = place();
    let mut one = Journal::open(&path, true).unwrap();
    let mut two = reopened(&path);
    one.append(&records(&["a"]), true).unwrap();
    two.append(&records(&["b"]), true).unwrap();
    one.append(&records(&["c"]), true).unwrap();
    assert_eq!(one.read().unwrap(), records(&["a", "b", "c"]));
    assert_eq!(two.read().unwrap(), records(&["a", "b", "c"]));
}

#[test]
fn a_fresh_journal_replaces_none() {
    let (_folder, path) = place();
    drop(Journal::open(&path, true).unwrap());
    let refused = Journal::open(&path, true).unwrap_err().to_string();
    assert!(refused.contains("resume it"), "{refused}");
}

#[test]
fn every_torn_end_is_ignored_and_then_cut() {
    let (_folder, path) = place();
    let mut journal = Journal::open(&path, true).unwrap();
    journal.append(&records(&["first"]), true).unwrap();
    let kept = fs::metadata(&path).unwrap().len();
    journal.append(&records(&["second, torn"]), true).unwrap();
    let whole = fs::read(&path).unwrap();
    for end in kept as usize..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        let mut journal = reopened(&path);
        assert_eq!(journal.read().unwrap(), records(&["first"]), "cut at {end}");
        journal.append(&records(&["third"]), true).unwrap();
        assert_eq!(journal.read().unwrap(), records(&["third"]), "cut at {end}");
        assert_eq!(reopened(&path).read().unwrap(), records(&["first", "third"]), "cut at {end}");
    }
}

#[test]
fn every_torn_header_is_written_again() {
    let (_folder, path) = place();
    let header = record::header();
    for end in 0..HEADER {
        fs::write(&path, &header[..end]).unwrap();
        reopened(&path).append(&records(&["x"]), true).unwrap();
        assert_eq!(reopened(&path).read().unwrap(), records(&["x"]));
    }
}

#[test]
fn damage_costs_the_record_it_hit() {
    let (_folder, path) = place();
    let mut journal = Journal::open(&path, true).unwrap();
    journal.append(&records(&["one", "two", "three"]), true).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(3).position(|window| window == b"two").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let mut journal = reopened(&path);
    assert_eq!(journal.read().unwrap(), records(&["one", "three"]));
    assert_eq!(journal.damaged(), 15);
    journal.append(&records(&["four"]), true).unwrap();
    assert_eq!(reopened(&path).read().unwrap(), records(&["one", "three", "four"]));
}

#[test]
fn a_damaged_length_costs_its_record_alone() {
    let (_folder, path) = place();
    let mut journal = Journal::open(&path, true).unwrap();
    journal.append(&records(&["one", "two", "three"]), true).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // The length of "one" now points far behind the end of the file.
    bytes[HEADER + 5] ^= 0x40;
    fs::write(&path, &bytes).unwrap();
    let mut journal = reopened(&path);
    assert_eq!(journal.read().unwrap(), records(&["two", "three"]));
    assert_eq!(journal.damaged(), 15);
    reopened(&path).append(&records(&["four"]), true).unwrap();
    assert_eq!(reopened(&path).read().unwrap(), records(&["two", "three", "four"]));
}

#[test]
fn a_reader_waits_for_the_end_of_a_torn_record() {
    let (_folder, path) = place();
    let mut writer = Journal::open(&path, true).unwrap();
    writer.append(&records(&["one"]), true).unwrap();
    let kept = fs::metadata(&path).unwrap().len();
    writer.append(&records(&["torn by its writer"]), true).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(kept + 14).unwrap();
    let mut writer = reopened(&path);
    let mut reader = reopened(&path);
    writer.lock().unwrap();
    let other = std::thread::spawn(move || {
        let found = reader.read().unwrap();
        (found, reader)
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
    writer.append(&records(&["two", "three"]), true).unwrap();
    writer.unlock().unwrap();
    let (mut found, mut reader) = other.join().unwrap();
    found.extend(reader.read().unwrap());
    assert_eq!(found, records(&["one", "two", "three"]));
    assert_eq!(reader.damaged(), 0);
}

#[test]
fn other_files_are_refused_and_left_alone() {
    let (folder, path) = place();
    fs::write(&path, b"my diary, dear to me").unwrap();
    assert!(Journal::open(&path, false).unwrap_err().to_string().contains("no journal"));
    assert_eq!(fs::read(&path).unwrap(), b"my diary, dear to me");
    let mut newer = record::header();
    newer[8] = 9;
    let sum = crc32fast::hash(&newer[..12]);
    newer[12..].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, newer).unwrap();
    assert!(Journal::open(&path, false).unwrap_err().to_string().contains("version 9"));
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(Journal::open(&link, false).is_err());
    assert!(Journal::open(folder.path(), false).is_err());
}

#[test]
fn a_record_has_a_size() {
    let (_folder, path) = place();
    let mut journal = Journal::open(&path, true).unwrap();
    assert!(journal.append(&[vec![]], true).is_err());
    assert!(journal.append(&[vec![0; LARGEST + 1]], true).is_err());
    let largest: Vec<_> = (0..40).map(|n| vec![n; LARGEST]).collect();
    journal.append(&largest, false).unwrap();
    assert_eq!(reopened(&path).read().unwrap(), largest);
}

#[test]
fn an_item_is_leased_once_and_comes_back() {
    let (_folder, path) = place();
    let one = Journal::open(&path, true).unwrap();
    let two = reopened(&path);
    assert!(one.lease(7).unwrap());
    assert!(!two.lease(7).unwrap());
    assert!(two.lease(8).unwrap());
    one.release(7).unwrap();
    assert!(two.lease(7).unwrap());
    assert!(one.lease(u64::MAX).is_err());
    drop(two);
    assert!(one.lease(7).unwrap());
    assert!(one.lease(8).unwrap());
}

#[test]
fn a_locked_journal_makes_others_wait() {
    let (_folder, path) = place();
    let mut one = Journal::open(&path, true).unwrap();
    one.lock().unwrap();
    assert!(one.lock().is_err());
    let other = std::thread::spawn({
        let path = path.clone();
        move || reopened(&path).append(&records(&["late"]), true).unwrap()
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
    one.append(&records(&["early"]), true).unwrap();
    assert!(!other.is_finished());
    one.unlock().unwrap();
    other.join().unwrap();
    assert_eq!(one.read().unwrap(), records(&["early", "late"]));
}

#[test]
fn many_writers_lose_nothing() {
    let (_folder, path) = place();
    drop(Journal::open(&path, true).unwrap());
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut journal = reopened(&path);
                for n in 0..50 {
                    let text = format!("{writer} {n} {}", "x".repeat(n));
                    journal.append(&[text.into_bytes()], false).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    let all = reopened(&path).read().unwrap();
    assert_eq!(all.len(), 200);
    for writer in 0..4 {
        let own = all.iter().filter(|record| record.starts_with(format!("{writer} ").as_bytes()));
        let numbers: Vec<usize> = own
            .map(|record| String::from_utf8_lossy(record).split(' ').nth(1).unwrap().parse())
            .map(std::result::Result::unwrap)
            .collect();
        assert_eq!(numbers, (0..50).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever bytes follow, are cut or are flipped: no panic, only records that were written,
    /// in order, and appending works afterwards.
    #[test]
    fn nothing_breaks_it(
        texts in vec("[a-z]{1,40}", 1..12),
        tail in vec(any::<u8>(), 0..60),
        cut in 0_usize..400,
        flip in proptest::option::of((HEADER..500_usize, 0..8_u32)),
    ) {
        let (_folder, path) = place();
        let written: Vec<_> = texts.iter().map(|text| text.clone().into_bytes()).collect();
        Journal::open(&path, true).unwrap().append(&written, false).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(bytes.len().saturating_sub(cut).max(HEADER));
        if let Some((at, bit)) = flip && at < bytes.len() {
            bytes[at] ^= 1 << bit;
        }
        fs::File::create(&path).unwrap().write_all(&[bytes, tail].concat()).unwrap();
        let mut journal = reopened(&path);
        let found = journal.read().unwrap();
        let mut rest = written.iter();
        for record in &found {
            prop_assert!(rest.any(|one| one == record), "{record:?} was never written");
        }
        journal.append(&[b"END".to_vec()], false).unwrap();
        let again = reopened(&path).read().unwrap();
        prop_assert_eq!(again.last().unwrap(), b"END");
        prop_assert_eq!(&again[..found.len()], &found[..]);
    }

    /// One flipped bit costs the record it is in, whichever of its bytes that is, for readers as
    /// for writers.
    #[test]
    fn a_flipped_bit_costs_one_record(
        texts in vec("[a-z]{1,40}", 1..12),
        at in any::<proptest::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let (_folder, path) = place();
        let mut left: Vec<_> = texts.iter().map(|text| text.clone().into_bytes()).collect();
        Journal::open(&path, true).unwrap().append(&left, false).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = HEADER + at.index(bytes.len() - HEADER);
        bytes[at] ^= 1 << bit;
        fs::write(&path, &bytes).unwrap();
        let mut end = HEADER;
        let hit = left.iter().position(|text| {
            end += 12 + text.len();
            at < end
        });
        left.remove(hit.unwrap());
        prop_assert_eq!(&reopened(&path).read().unwrap(), &left);
        reopened(&path).append(&[b"END".to_vec()], false).unwrap();
        left.push(b"END".to_vec());
        prop_assert_eq!(reopened(&path).read().unwrap(), left);
    }
}
