//! The file that keeps grants over a restart: JSON, written beside itself and renamed, so that it
//! is always whole. Times are wall-clock times: what ended meanwhile is not in force again.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::BY_MAX;
use super::table::Grant;

/// The name of the file in `state_dir`.
pub(super) const FILE: &str = "grants.json";
/// What the name of a file begins with that is not whole yet.
const BEGUN: &str = ".grants-";
/// A file of 65,536 grants is smaller: JSON writes a control character in six bytes.
const BYTES_MAX: u64 = 65_536 * (6 * BY_MAX as u64 + 256);

#[derive(Serialize, Deserialize)]
struct File {
    grants: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    address: IpAddr,
    #[serde(flatten)]
    grant: Grant,
}

/// The grants that were kept and are not over. A file that cannot be read is as good as none: then
/// users have to log in again, and the log says so.
pub(super) fn read(path: &Path, now: u64) -> Vec<(IpAddr, Grant)> {
    let text = match fs::metadata(path) {
        Ok(about) if about.len() > BYTES_MAX => {
            Err(io::Error::other("larger than any that is kept"))
        }
        Ok(_) => fs::read(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => Err(error),
    };
    let file = text.and_then(|text| Ok(serde_json::from_slice::<File>(&text)?));
    match file {
        Ok(file) => in_force(file, now),
        Err(error) => {
            let path = path.display();
            tracing::warn!(%path, %error, "cannot read the grants that were kept: there are none");
            Vec::new()
        }
    }
}

fn in_force(file: File, now: u64) -> Vec<(IpAddr, Grant)> {
    let grants = file.grants.into_iter().map(|Entry { address, mut grant }| {
        // If the clock was set back meanwhile, it holds for no longer than it was added for.
        let time = match grant.seconds {
            // A version that did not keep it.
            0 => grant.until.saturating_sub(grant.since),
            seconds => seconds,
        };
        grant.since = grant.since.min(now);
        grant.until = grant.until.min(now.saturating_add(time));
        (address.to_canonical(), grant)
    });
    grants.filter(|(_, grant)| grant.until > now).collect()
}

/// The content of the file.
pub(super) fn text(grants: Vec<(IpAddr, Grant)>) -> Vec<u8> {
    let grants = grants
        .into_iter()
        .map(|(address, grant)| Entry { address, grant });
    let file = File {
        grants: grants.collect(),
    };
    // Writing to memory does not fail.
    serde_json::to_vec(&file).unwrap_or_default()
}

/// Replaces the file.
pub(super) fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(BEGUN)
        .tempfile_in(directory)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Removes what a gate that was killed has begun to write.
pub(super) fn remove_stale(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(BEGUN.as_bytes())
        {
            // One that stays costs room, and no more.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(since: u64, until: u64, seconds: u64) -> Grant {
        Grant {
            since,
            until,
            seconds,
            by: "user \"joe\"\n".to_owned(),
        }
    }

    #[test]
    fn what_was_kept_is_in_force_again_until_its_time_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        assert_eq!(read(&path, 0), []);
        let addresses: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
        let grants = vec![
            (addresses[0], grant(50, 100, 50)),
            // Renewed at 80.
            (addresses[1], grant(50, 200, 120)),
        ];
        write(&path, &text(grants)).unwrap();
        assert_eq!(read(&path, 99).len(), 2);
        assert_eq!(read(&path, 100), [(addresses[1], grant(50, 200, 120))]);
        let set_back = read(&path, 10);
        let expected = (addresses[1], grant(10, 130, 120));
        assert_eq!(
            set_back[1], expected,
            "for no longer than it was renewed for"
        );
        let names = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(names, 1, "nothing is left beside it");
    }

    #[test]
    fn a_damaged_file_opens_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        for text in ["", "{", "[]", r#"{"grants":[{"address":"x"}]}"#, "\0\u{1}"] {
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path, 0), [], "{text}");
        }
    }
}
