//! What is refused, what a draft is needed for, and when memory is asked for.

use std::cell::Cell;
use std::fs;

use super::super::file::{About, write_as};
use super::super::format::{Format, Reading};
use super::super::guard::{Protected, ProtectedRole};
use super::super::read::ReadObserver;
use super::super::source::{FileFindings, ListSource, Sources};
use super::super::{Covered, Memory};
use super::*;

thread_local! {
    /// How often memory was asked for elsewhere.
    static ASKED: Cell<u32> = const { Cell::new(0) };
}

fn elsewhere(lines: usize) -> Box<dyn Memory> {
    ASKED.set(ASKED.get() + 1);
    private(lines)
}

#[derive(Default)]
struct Unreadable(Vec<String>);

impl ReadObserver for Unreadable {
    fn read(&mut self, _: &ListSource, _: &Reading, found: &FileFindings) {
        assert!(found.faults.is_empty(), "{found:?}");
    }

    fn unreadable(&mut self, _: usize, _: &Path, why: String) {
        self.0.push(why);
    }
}

/// What a drop list of these lines holds, read from its file.
fn text(directory: &Path, lines: &str) -> Read {
    let file = directory.join("feed");
    fs::write(&file, lines).unwrap();
    let source = ListSource {
        name: "feed".to_owned(),
        action: ListAction::Drop,
        format: Format::Cidr,
        file,
        strict: true,
    };
    let read = Sources::Files(vec![source]).read(false, &mut Unreadable::default());
    read.read.expect("the file is good")
}

fn placed(read: Read) -> Compiled {
    read.unchecked().place(None).unwrap().compiled
}

fn guard() -> Guard {
    let next_hop = Protected::new("198.51.100.25/32".parse().unwrap(), ProtectedRole::NextHop);
    Guard {
        protected: next_hop.into_iter().collect(),
        ..Guard::default()
    }
}

const BEFORE: &str = "192.0.2.1\n192.0.2.2\n192.0.2.3\n";
const REFUSED: [&str; 3] = [
    "192.0.2.1\n",
    "192.0.2.1\n192.0.2.2\n64.0.0.0/2\n",
    "192.0.2.1\n192.0.2.2\n198.51.100.0/24\n",
];

fn in_force<'a>(lists: &'a Compiled, kept: &'a Path) -> Before<'a> {
    Before::InForce {
        lists,
        compiled_at: 100,
        kept,
    }
}

#[test]
fn lists_that_are_refused_take_no_memory_and_others_take_it_once() {
    let directory = tempfile::tempdir().unwrap();
    let (at, kept) = (directory.path(), directory.path().join("kept"));
    let before = placed(text(at, BEFORE));
    let before = in_force(&before, &kept);
    let cases = REFUSED.map(|lines| (lines, 0));
    // The second needs a draft.
    let taken = [
        ("192.0.2.1\n192.0.2.9\n", 1),
        ("192.0.2.1\n::/128\n198.51.100.24\n", 1),
    ];
    for (lines, asked) in cases.into_iter().chain(taken) {
        ASKED.set(0);
        let checked = text(at, lines).check(&guard(), &before);
        assert_eq!(ASKED.get(), 0, "{lines}: it was asked for too early");
        let placed = checked.map(|checked| checked.place(Some(elsewhere)).unwrap());
        assert_eq!((ASKED.get(), placed.is_ok()), (asked, asked > 0), "{lines}");
    }
}

#[test]
fn a_draft_that_passes_the_guard_has_the_same_content_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let (at, kept) = (directory.path(), directory.path().join("kept"));
    let wide = "128.0.0.0/1\n2a00::/8\n";
    let before = placed(text(at, wide));
    let more = format!("{wide}192.0.2.1\n");
    let read = text(at, &more);
    let lists = read.lists();
    assert!(read.may_have_grown(&guard(), &lists), "it needs no draft");
    let checked = read.check(&guard(), &in_force(&before, &kept)).unwrap();
    assert!(checked.draft.is_some());
    let elsewhere = checked.place(Some(elsewhere)).unwrap().compiled;
    assert!(
        elsewhere
            .filtered
            .same_content(&placed(text(at, &more)).filtered)
    );
}

#[test]
fn only_lists_that_may_have_grown_too_much_need_a_draft() {
    let directory = tempfile::tempdir().unwrap();
    let needs = |lines: &str| {
        let read = text(directory.path(), lines);
        let text = read.may_have_grown(&guard(), &read.lists());
        // The same from a file, with and without what its lists cover.
        let path = directory.path().join("snapshot");
        let mut compiled = placed(read);
        for knows in [true, false] {
            if !knows {
                compiled.lists[0].covered = None;
            }
            let about = About::of(&compiled, std::time::UNIX_EPOCH);
            write_as(&path, &compiled, &about).unwrap();
            let read = Read::of_snapshot(Stored::open(&path).unwrap()).unwrap();
            let stored = read.may_have_grown(&guard(), &read.lists());
            assert_eq!(stored, text || !knows, "{lines}");
        }
        text
    };
    assert!(!needs("10.0.0.0/8\n2001:db8::/32\n198.51.100.24\n"));
    assert!(needs("10.0.0.0/6\n"));
    assert!(needs("2a00::/8\n"));
    assert!(needs("198.51.100.25\n"));
    let off = Guard {
        grow_max: guard::OFF,
        ..guard()
    };
    let read = text(directory.path(), "0.0.0.0/0\n");
    assert!(!read.may_have_grown(&off, &read.lists()));
}

#[test]
fn what_an_operator_has_forced_since_is_taken_and_nothing_else_is() {
    let directory = tempfile::tempdir().unwrap();
    let (at, kept) = (directory.path(), directory.path().join("kept"));
    let before = placed(text(at, BEFORE));
    let before = in_force(&before, &kept);
    for (number, lines) in REFUSED.into_iter().enumerate() {
        let takes = |forced: &str, compiled_at: u64| {
            let forced = placed(text(at, forced));
            let about = About {
                compiled_at,
                ..About::of(&forced, std::time::UNIX_EPOCH)
            };
            write_as(&kept, &forced, &about).unwrap();
            text(at, lines).check(&guard(), &before).is_ok()
        };
        assert!(takes(lines, 100), "{lines}: it was forced");
        assert!(!takes(lines, 99), "{lines}: that was before");
        let other = REFUSED[(number + 1) % 3];
        assert!(!takes(other, 100), "{lines}: another was forced");
    }
    fs::remove_file(&kept).unwrap();
    for lines in REFUSED {
        let refusal = text(at, lines).check(&guard(), &before).unwrap_err();
        assert_eq!(refusal.lines().len(), 1, "{refusal}");
        let forced = text(at, lines).forced(true);
        assert!(forced.check(&guard(), &before).is_ok(), "{lines}");
    }
}

#[test]
fn a_snapshot_that_is_damaged_is_found_before_memory_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    let compiled = placed(text(directory.path(), BEFORE));
    let about = About::of(&compiled, std::time::UNIX_EPOCH);
    write_as(&path, &compiled, &about).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 70] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut observer = Unreadable::default();
    let attempt = Sources::Snapshot(path.clone()).read(false, &mut observer);
    assert!(attempt.read.is_none(), "it was taken");
    assert_eq!(observer.0.len(), 1);
    assert!(observer.0[0].contains("damaged"), "{}", observer.0[0]);
    // One that changes later is refused by what is asked for it.
    write_as(&path, &compiled, &about).unwrap();
    let read = Read::of_snapshot(Stored::open(&path).unwrap()).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9], end as u64 - 70).unwrap();
    assert!(read.unchecked().place(None).is_err());
}

#[test]
fn a_snapshot_says_how_much_its_lists_cover() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    let compiled = placed(text(directory.path(), "128.0.0.0/1\n2000::/3\n"));
    let covered = Covered {
        ipv4: 1 << 31,
        ipv6: 1 << 125,
    };
    assert_eq!(compiled.lists[0].covered, Some(covered));
    write_as(
        &path,
        &compiled,
        &About::of(&compiled, std::time::UNIX_EPOCH),
    )
    .unwrap();
    let stored = Stored::open(&path).unwrap();
    assert_eq!(stored.about().lists, compiled.lists);
}

#[test]
fn a_refusal_of_many_lists_is_bounded() {
    let loss = |number: u64| Loss {
        list: format!("list-{number}"),
        before: 9,
        after: 0,
    };
    let refusal = Refusal {
        losses: (0..256).map(loss).collect(),
        ..Refusal::default()
    };
    let lines = refusal.lines();
    assert_eq!(lines.len(), TOLD_MAX + 1);
    assert!(lines[TOLD_MAX].contains("246 more"), "{lines:?}");
}
