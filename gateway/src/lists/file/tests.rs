//! What is written comes back, and nothing else does.

use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn compiled() -> Compiled {
    let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
    let list = |name: &str, action, prefixes| (name.to_owned(), action, prefixes);
    Compiled::new([
        list(
            "friends",
            ListAction::Permit,
            nets(&["192.0.2.7/32", "192.0.8.128/25", "2001:db8:5::/48"]),
        ),
        list(
            "spammers",
            ListAction::Drop,
            nets(&[
                "192.0.0.0/23",
                "192.0.2.0/28",
                "192.0.2.1/32",
                "192.0.2.2/32",
                "2001:db8::/32",
                "2001:db8:1:2::/64",
                "2001:db8:1:2::3/128",
            ]),
        ),
        list(
            "greetings",
            ListAction::Reject,
            nets(&["192.0.2.0/24", "2001:db8:5:5::/64", "192.0.3.9/32"]),
        ),
    ])
}

const ADDRESSES: [&str; 12] = [
    "192.0.1.255",
    "192.0.4.0",
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.7",
    "192.0.2.200",
    "192.0.3.9",
    "192.0.8.129",
    "2001:db8:1:2::3",
    "2001:db8:1:2::4",
    "2001:db8:5:5::1",
    "2001:db9::",
];

fn written() -> (TempDir, PathBuf, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lists.snapshot");
    let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    write(&path, &compiled(), at).unwrap();
    let octets = fs::read(&path).unwrap();
    (directory, path, octets)
}

#[test]
fn what_is_loaded_or_asked_in_place_answers_as_what_was_written() {
    let (directory, path, _) = written();
    let before = compiled();
    let stored = Stored::open(&path).unwrap();
    assert_eq!(stored.about().compiled_at, 1_700_000_000);
    assert_eq!(stored.about().lists, before.lists);
    let after = load(&path, private).unwrap();
    assert_eq!(after.lists, before.lists);
    assert!(after.filtered.same_content(&before.filtered));
    assert!(after.rejected.same_content(&before.rejected));
    for address in ADDRESSES.map(|address| address.parse().unwrap()) {
        let expected = (before.filtered(address), before.rejected(address));
        assert_eq!((after.filtered(address), after.rejected(address)), expected);
        let in_place = (stored.filtered(address), stored.rejected(address));
        assert_eq!((in_place.0.unwrap(), in_place.1.unwrap()), expected);
    }
    let names = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(names, 1, "nothing is left beside the file");
}

#[test]
fn a_file_of_no_lists_is_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("empty");
    write(&path, &Compiled::default(), UNIX_EPOCH).unwrap();
    let loaded = load(&path, private).unwrap();
    assert_eq!(loaded.filtered("192.0.2.1".parse().unwrap()), None);
    // And another, written over it.
    write(&path, &compiled(), UNIX_EPOCH).unwrap();
    assert_eq!(load(&path, private).unwrap().lists.len(), 3);
}

/// What `load` says of a file of these octets, in one word, and that it says what to do.
fn fault(path: &Path, octets: &[u8]) -> &'static str {
    fs::write(path, octets).unwrap();
    let Err(error) = load(path, private) else {
        return "good";
    };
    let text = error.to_string();
    assert!(text.contains(&*path.to_string_lossy()), "{text}");
    assert!(text.ends_with("`portcullis lists compile`"), "{text}");
    match error.fault {
        Fault::Io(_) => "io",
        Fault::NoSnapshot => "no snapshot",
        Fault::Version => "version",
        Fault::Length { .. } => "length",
        Fault::Damaged(_) => "damaged",
    }
}

#[test]
fn every_kind_of_damage_is_told_and_none_gets_through() {
    let (_directory, path, good) = written();
    let with = |at: usize, octet: u8| {
        let mut bad = good.clone();
        bad[at] = octet;
        bad
    };
    let mut longer = good.clone();
    longer.push(0);
    let end = good.len();
    let half = end / 2;
    let cases: [(&str, Vec<u8>, &str); 13] = [
        ("empty", Vec::new(), "no snapshot"),
        ("a text", b"192.0.2.1\n".repeat(100), "no snapshot"),
        ("its first line", good[..63].to_vec(), "no snapshot"),
        ("its header alone", good[..64].to_vec(), "length"),
        ("half of it", good[..half].to_vec(), "length"),
        ("all but an octet", good[..end - 1].to_vec(), "length"),
        ("an octet more", longer, "length"),
        ("another magic", with(0, b'Q'), "no snapshot"),
        ("another version of the file", with(8, 99), "version"),
        ("another version of the lines", with(12, 99), "version"),
        ("another size", with(20, 99), "damaged"),
        ("another name of a list", with(64 + 40, b'#'), "damaged"),
        ("another line", with(end - 70, 99), "damaged"),
    ];
    assert_eq!(fault(&path, &good), "good");
    for (what, octets, expected) in cases {
        assert_eq!(fault(&path, &octets), expected, "{what}");
    }
    // Padding is no part of anything.
    let about = u32::from_le_bytes(*good[16..].first_chunk().unwrap()) as usize;
    let padding = 64 + about..64 + about.next_multiple_of(64);
    for at in (0..end).filter(|at| !padding.contains(at)).step_by(7) {
        assert_ne!(fault(&path, &with(at, !good[at])), "good", "octet {at}");
    }
}

#[test]
fn a_file_with_a_good_sum_over_nonsense_is_refused_or_answers() {
    let (_directory, path, good) = written();
    let header = Header::read(good.first_chunk().unwrap()).unwrap();
    let first = header.lines_at() as usize;
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..200 {
        let mut bad = good.clone();
        for _ in 0..random.usize(1..40) {
            let at = random.usize(first..bad.len().min(first + 2_000));
            bad[at] = random.u8(..);
        }
        let lines_sum = crc32fast::hash(&bad[first..]);
        let header = Header {
            lines_sum,
            ..header
        };
        bad[..64].copy_from_slice(&header.write());
        fs::write(&path, &bad).unwrap();
        if let Ok(loaded) = load(&path, private) {
            for address in ADDRESSES.map(|address| address.parse().unwrap()) {
                let _ = (loaded.filtered(address), loaded.rejected(address));
            }
        }
    }
}

#[test]
fn a_link_stays_one_and_the_file_that_it_leads_to_is_replaced() {
    let (directory, path, octets) = written();
    let link = directory.path().join("current");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    write(&link, &Compiled::default(), UNIX_EPOCH).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_ne!(fs::read(&path).unwrap(), octets);
    assert!(Stored::open(&link).is_ok());
}

#[test]
fn a_missing_file_is_named() {
    let error = Stored::open(Path::new("/nowhere/lists.snapshot")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("/nowhere/lists.snapshot: No such file"),
        "{text}"
    );
    let error = write(
        Path::new("/nowhere/lists.snapshot"),
        &compiled(),
        UNIX_EPOCH,
    );
    assert!(matches!(error.unwrap_err().fault, Fault::Io(_)));
}

/// What may stand in a damaged place: anything, or what leads somewhere.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..4_000_u64]
}

proptest! {
    /// A snapshot of which some words are others: what the kernel's verifier proves of the program,
    /// shown of userspace.
    #[test]
    fn no_damage_makes_a_look_up_panic(
        damages in prop::collection::vec((any::<prop::sample::Index>(), word()), 1..12),
        addresses in prop::collection::vec(any::<u128>(), 1..8),
    ) {
        let mut lines = compiled().filtered.lines().to_vec();
        let words = lines.as_flattened_mut();
        let said: Vec<usize> = (0..words.len()).filter(|at| words[*at] != 0).collect();
        for (place, value) in damages {
            words[*place.get(&said)] = value;
        }
        for address in ADDRESSES {
            let _ = lookup(&lines[..], address.parse().unwrap());
        }
        for address in addresses {
            let _ = lookup(&lines[..], IpAddr::from(address.to_be_bytes()));
            let _ = lookup(&lines[..], IpAddr::from((address as u32).to_be_bytes()));
        }
    }

    #[test]
    fn nonsense_for_lines_makes_no_look_up_panic(
        lines in prop::collection::vec(any::<[u64; 8]>(), 0..60),
        address in any::<u128>(),
    ) {
        let _ = lookup(&lines[..], IpAddr::from(address.to_be_bytes()));
        let _ = lookup(&lines[..], IpAddr::from((address as u32).to_be_bytes()));
    }
}

#[test]
fn a_link_of_another_user_is_replaced_and_leads_root_nowhere() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (victim, link) = (
        directory.path().join("victim"),
        directory.path().join("lists"),
    );
    fs::write(&victim, "as it was").unwrap();
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(65534), Some(65534)).unwrap();
    write(&link, &Compiled::default(), UNIX_EPOCH).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"as it was");
    assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(Stored::open(&link).is_ok());
}

#[test]
fn a_fifo_in_place_of_a_snapshot_does_not_hold_up_a_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lists");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = Stored::open(&path).unwrap_err();
    assert!(matches!(error.fault, Fault::NoSnapshot), "{error}");
}
