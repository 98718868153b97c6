//! A compiled snapshot as a file: what took seconds to read and settle is in force again in the
//! time of one copy.
//!
//! ```text
//! bytes 0-63     magic, version of this format and of the lines, sizes, check sums (little-endian)
//! from 64        what the lists are called and where they came from, JSON,
//!                with zeros up to a multiple of 64
//! then           the lines of permit and drop lists, then those of reject lists, as in memory
//! ```
//!
//! It is written beside its place and renamed, so that no reader sees half of one. It is read,
//! never mapped: a mapped file could be truncated under the look-ups. Ranges of zeros are not
//! written, and on reading not touched, so that a sparse directory costs neither disk nor memory.
//! Generation and classes, which belong to a kernel, are left out.

use core::cell::Cell;
use core::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytemuck::Pod;
use crc32fast::Hasher;
use nix::libc;
use nix::unistd::geteuid;
use portcullis_ebpf_common::snapshot::{
    CLASSES, FIRST_FREE, Field, LISTS_MAX, Line, Lines, MAGIC, VERSION,
};
use serde::{Deserialize, Serialize};

use super::compiled::{Compiled, List, ListAction, Listing, listing};
use super::snapshot::{Allocate, lookup, private};

mod left_over;

const FILE_MAGIC: [u8; 8] = *b"PCLISTS\n";
const FILE_VERSION: u32 = 1;
const HEADER: usize = 64;
const LINE: usize = size_of::<Line>();
/// Lines that are read or written at once: what fits into a core's cache between the check sum and
/// the copy.
const CHUNK: usize = 1024;
static ZEROS: [Line; CHUNK] = [[0; 8]; CHUNK];
/// Bytes of a description; a list has some hundred.
const ABOUT_MAX: u32 = 1 << 22;

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// When it was compiled: seconds since 1970.
    pub compiled_at: u64,
    /// The lists, in the order of the configuration.
    pub lists: Vec<List>,
    /// Whether someone said, when it was compiled, that what its lists lost or gained is meant.
    #[serde(default)]
    pub forced: bool,
    /// The file that it was loaded from, if it was not compiled.
    #[serde(default)]
    pub loaded_from: Option<PathBuf>,
}

impl About {
    /// Of these lists, read at a time.
    pub fn of(compiled: &Compiled, compiled_at: SystemTime) -> About {
        About {
            compiled_at: compiled_at
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            lists: compiled.lists.clone(),
            forced: false,
            loaded_from: None,
        }
    }
}

/// Why a file is of no use. The text names it and says what to do.
#[derive(Debug)]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What can be wrong with a file.
#[derive(Debug)]
pub enum Fault {
    /// It cannot be read or written.
    Io(io::Error),
    /// It is something else.
    NoSnapshot,
    /// It was written by another version of this program.
    Version,
    /// It has not the length that it ought to have.
    Length {
        /// Bytes that there are.
        found: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// A check sum is wrong, or what is in it contradicts itself.
    Damaged(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.fault {
            Fault::Io(error) => return write!(f, "{path}: {error}"),
            Fault::NoSnapshot => write!(f, "{path}: not a compiled snapshot of lists")?,
            Fault::Version => write!(f, "{path}: compiled by another version of portcullis")?,
            Fault::Length { found, expected } => {
                write!(
                    f,
                    "{path}: {found} bytes long, where {expected} are expected"
                )?;
            }
            Fault::Damaged(what) => write!(f, "{path}: damaged: {what}")?,
        }
        f.write_str("; make it anew with `portcullis lists compile`")
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The first bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    about: u32,
    filtered: u32,
    rejected: u32,
    /// Of the description.
    about_sum: u32,
    /// Of all lines.
    lines_sum: u32,
}

impl Header {
    fn write(self) -> [u8; HEADER] {
        let mut octets = [0; HEADER];
        octets[..8].copy_from_slice(&FILE_MAGIC);
        let words = [
            FILE_VERSION,
            VERSION,
            self.about,
            self.filtered,
            self.rejected,
            self.about_sum,
            self.lines_sum,
        ];
        for (place, word) in octets[8..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let sum = crc32fast::hash(&octets[..HEADER - 4]);
        octets[HEADER - 4..].copy_from_slice(&sum.to_le_bytes());
        octets
    }

    fn read(octets: &[u8; HEADER]) -> Result<Self, Fault> {
        if octets[..8] != FILE_MAGIC {
            return Err(Fault::NoSnapshot);
        }
        let mut words = octets[8..].chunks_exact(4).map(|word| {
            let word = word.first_chunk().copied().unwrap_or_default();
            u32::from_le_bytes(word)
        });
        let mut next = || words.next().unwrap_or_default();
        if [next(), next()] != [FILE_VERSION, VERSION] {
            return Err(Fault::Version);
        }
        let header = Self {
            about: next(),
            filtered: next(),
            rejected: next(),
            about_sum: next(),
            lines_sum: next(),
        };
        if header.write() != *octets || header.about > ABOUT_MAX {
            return Err(Fault::Damaged("the header"));
        }
        Ok(header)
    }

    /// Where the lines begin.
    fn lines_at(self) -> u64 {
        (HEADER + (self.about as usize).next_multiple_of(LINE)) as u64
    }

    fn file_length(self) -> u64 {
        self.lines_at() + (u64::from(self.filtered) + u64::from(self.rejected)) * LINE as u64
    }
}

/// Writes compiled lists to a file, in place of the one that is there, or of the one that a link
/// leads to.
///
/// # Errors
/// [`Fault::Io`]; then the file that was there is as it was.
pub fn write(path: &Path, compiled: &Compiled, compiled_at: SystemTime) -> Result<(), Error> {
    write_as(path, compiled, &About::of(compiled, compiled_at))
}

/// As [`write()`], with what the file shall say of itself.
///
/// # Errors
/// As [`write()`].
pub fn write_as(path: &Path, compiled: &Compiled, about: &About) -> Result<(), Error> {
    let target = match fs::canonicalize(path) {
        Ok(target) if may_be_followed(path) => target,
        _ => path.to_owned(),
    };
    write_beside(&target, compiled, about).map_err(|error| Error {
        path: path.to_owned(),
        fault: Fault::Io(error),
    })
}

/// A link of another user than root and this one is replaced, not followed: root writes to the
/// directory of the gate's user.
fn may_be_followed(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| {
        !found.is_symlink() || found.uid() == 0 || found.uid() == geteuid().as_raw()
    })
}

fn write_beside(path: &Path, compiled: &Compiled, about: &About) -> io::Result<()> {
    let about = serde_json::to_vec(about)?;
    let number = |count: usize| u32::try_from(count).map_err(io::Error::other);
    let mut header = Header {
        about: number(about.len())?,
        filtered: number(compiled.filtered.lines().len())?,
        rejected: number(compiled.rejected.lines().len())?,
        about_sum: crc32fast::hash(&about),
        lines_sum: 0,
    };
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    left_over::remove(directory);
    // Root compiles, and the gate's user reads.
    let mut temporary = tempfile::Builder::new()
        .prefix(&left_over::prefix())
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(directory)?;
    let file = temporary.as_file_mut();
    left_over::hold(file);
    file.seek(SeekFrom::Start(HEADER as u64))?;
    file.write_all(&about)?;
    file.seek(SeekFrom::Start(header.lines_at()))?;
    let mut sum = Hasher::new();
    for snapshot in [&compiled.filtered, &compiled.rejected] {
        let (fixed, tables) = snapshot.lines().split_at(FIRST_FREE);
        let mut clean = [Line::default(); FIRST_FREE];
        clean[..CLASSES].copy_from_slice(&fixed[..CLASSES]);
        Field::GENERATION.set(&mut clean[0], 0);
        for chunk in [&clean[..]].into_iter().chain(tables.chunks(CHUNK)) {
            let octets: &[u8] = bytemuck::cast_slice(chunk);
            sum.update(octets);
            if is_zero(chunk) {
                file.seek_relative(octets.len() as i64)?;
            } else {
                file.write_all(octets)?;
            }
        }
    }
    header.lines_sum = sum.finalize();
    file.set_len(header.file_length())?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header.write())?;
    file.sync_all()?;
    temporary.persist(path)?;
    File::open(directory)?.sync_all()
}

fn is_zero(lines: &[Line]) -> bool {
    let zeros: &[u8] = bytemuck::cast_slice(&ZEROS[..lines.len()]);
    bytemuck::cast_slice::<Line, u8>(lines) == zeros
}

/// A file whose header and description have been found good.
#[derive(Debug)]
pub struct Stored {
    path: PathBuf,
    file: File,
    header: Header,
    about: About,
}

impl Stored {
    /// Opens a file, and looks at all but its lines.
    ///
    /// # Errors
    /// Every [`Fault`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let checked = || -> Result<(File, Header, About), Fault> {
            // A FIFO there does not hold up a start.
            let mut file = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(path)?;
            let found = file.metadata()?.len();
            let mut octets = [0; HEADER];
            file.read_exact(&mut octets)
                .map_err(|error| match ended(error) {
                    Fault::Damaged(_) => Fault::NoSnapshot,
                    fault => fault,
                })?;
            let header = Header::read(&octets)?;
            let expected = header.file_length();
            if found != expected {
                return Err(Fault::Length { found, expected });
            }
            let mut about = vec![0; header.about as usize];
            file.read_exact(&mut about).map_err(ended)?;
            if crc32fast::hash(&about) != header.about_sum {
                return Err(Fault::Damaged("the names of the lists"));
            }
            let about: About = serde_json::from_slice(&about)
                .map_err(|_| Fault::Damaged("the names of the lists"))?;
            if about.lists.len() > LISTS_MAX {
                return Err(Fault::Damaged("more lists than there can be"));
            }
            Ok((file, header, about))
        };
        match checked() {
            Ok((file, header, about)) => Ok(Self {
                path: path.to_owned(),
                file,
                header,
                about,
            }),
            Err(fault) => Err(Error {
                path: path.to_owned(),
                fault,
            }),
        }
    }

    /// Opens the file of the last compile, which later ones are compared with; `None` if there is
    /// none.
    ///
    /// # Errors
    /// Every [`Fault`]; those of the lines, too.
    pub fn open_last(path: &Path) -> Result<Option<Self>, Error> {
        match Self::open(path) {
            Ok(stored) => {
                stored.verify()?;
                Ok(Some(stored))
            }
            Err(Error {
                fault: Fault::Io(error),
                ..
            }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the file says of itself.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the lines: of the permit and drop lists, and of the reject lists.
    pub fn sizes(&self) -> (u64, u64) {
        let octets = |lines: u32| u64::from(lines) * LINE as u64;
        (octets(self.header.filtered), octets(self.header.rejected))
    }

    /// What the permit and drop lists say about an address. A few lines are read, however many
    /// there are; the check sum of all of them is not looked at.
    ///
    /// # Errors
    /// [`Fault::Io`].
    pub fn filtered(&self, address: IpAddr) -> Result<Option<Listing>, Error> {
        self.lookup(address, 0, self.header.filtered)
    }

    /// What the reject lists say about an address, as [`filtered`](Stored::filtered). One that a
    /// permit covers is not rejected.
    ///
    /// # Errors
    /// [`Fault::Io`].
    pub fn rejected(&self, address: IpAddr) -> Result<Option<Listing>, Error> {
        let rejected = self.lookup(address, self.header.filtered, self.header.rejected)?;
        let permitted = match rejected {
            Some(_) => self.filtered(address)?,
            None => None,
        };
        let is_permitted = permitted.is_some_and(|found| found.action == ListAction::Permit);
        Ok(rejected.filter(|_| !is_permitted))
    }

    fn lookup(&self, address: IpAddr, first: u32, count: u32) -> Result<Option<Listing>, Error> {
        let lines = InFile {
            file: &self.file,
            first: self.header.lines_at() + u64::from(first) * LINE as u64,
            count,
            failed: Cell::new(None),
        };
        let found = lookup(&lines, address);
        match lines.failed.take() {
            Some(error) => Err(self.error(Fault::Io(error))),
            None => Ok(found.and_then(|found| listing(&self.about.lists, found))),
        }
    }

    /// Reads the lines, those of permit and drop lists into the memory that is asked for.
    ///
    /// # Errors
    /// [`Fault::Io`] and [`Fault::Damaged`].
    pub fn load(&self, allocate: Allocate) -> Result<Compiled, Error> {
        let Header {
            filtered, rejected, ..
        } = self.header;
        let mut filtered = allocate(filtered as usize);
        let mut rejected = private(rejected as usize);
        let mut take = |part: Part, at: usize, read: &[Line]| {
            let lines = match part {
                Part::Filtered => filtered.lines_mut(),
                Part::Rejected => rejected.lines_mut(),
            };
            // What is zero is so already, and costs no memory if it is not touched.
            if !is_zero(read) {
                lines[at..at + read.len()].copy_from_slice(read);
            }
        };
        self.read_lines(&mut take)
            .map_err(|fault| self.error(fault))?;
        Ok(Compiled {
            lists: self.about.lists.clone(),
            filtered: filtered.into(),
            rejected: rejected.into(),
        })
    }

    /// Reads the lines, and keeps none: whether they are as they were written.
    ///
    /// # Errors
    /// As [`load`](Stored::load).
    pub fn verify(&self) -> Result<(), Error> {
        let verified = self.read_lines(&mut |_, _, _| {});
        verified.map_err(|fault| self.error(fault))
    }

    /// Reads all lines, some at a time: of which part, from which on.
    fn read_lines(&self, take: &mut impl FnMut(Part, usize, &[Line])) -> Result<(), Fault> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.header.lines_at()))?;
        let mut sum = Hasher::new();
        let mut chunk = vec![Line::default(); CHUNK];
        let parts = [
            (Part::Filtered, self.header.filtered as usize),
            (Part::Rejected, self.header.rejected as usize),
        ];
        for (part, count) in parts {
            if count < FIRST_FREE {
                return Err(Fault::Damaged("too few lines"));
            }
            for at in (0..count).step_by(CHUNK) {
                let read = &mut chunk[..CHUNK.min(count - at)];
                let octets = bytemuck::cast_slice_mut(read);
                file.read_exact(octets).map_err(ended)?;
                sum.update(octets);
                if at == 0 && !is_header(&read[0], count) {
                    return Err(Fault::Damaged("the header of the lines"));
                }
                take(part, at, read);
            }
        }
        if sum.finalize() != self.header.lines_sum {
            return Err(Fault::Damaged("the lists themselves"));
        }
        Ok(())
    }

    fn error(&self, fault: Fault) -> Error {
        Error {
            path: self.path.clone(),
            fault,
        }
    }
}

/// One of the two snapshots in a file.
#[derive(Clone, Copy)]
enum Part {
    Filtered,
    Rejected,
}

fn is_header(line: &Line, count: usize) -> bool {
    Field::MAGIC.of(line) == MAGIC && Field::LINES.of(line) == count as u64
}

/// Reads compiled lists; those of permit and drop lists into the memory that is asked for.
///
/// # Errors
/// Every [`Fault`].
pub fn load(path: &Path, allocate: Allocate) -> Result<Compiled, Error> {
    Stored::open(path)?.load(allocate)
}

/// A file whose length was found good may still be cut while it is read.
fn ended(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Fault::Damaged("it ends too early"),
        _ => Fault::Io(error),
    }
}

/// Lines that stay in the file: what is asked for is read from there.
struct InFile<'a> {
    file: &'a File,
    /// Where they begin.
    first: u64,
    count: u32,
    failed: Cell<Option<io::Error>>,
}

impl Lines for InFile<'_> {
    fn get<T: Pod>(&self, at: usize) -> Option<T> {
        let size = size_of::<T>() as u64;
        let before = (at as u64).checked_mul(size)?;
        if before >= u64::from(self.count) * LINE as u64 {
            return None;
        }
        let mut read = T::zeroed();
        let octets = bytemuck::bytes_of_mut(&mut read);
        match self.file.read_exact_at(octets, self.first + before) {
            Ok(()) => Some(read),
            Err(error) => {
                self.failed.set(Some(error));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
