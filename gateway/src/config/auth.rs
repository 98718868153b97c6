//! `[auth]`: who may authenticate.
//!
//! The user file is read with the configuration, so that a faulty one is refused as a whole and the
//! users in force stay. Its faults are told by line, but the line itself is not shown: it holds
//! hashes, and what is told may end in a log.

use std::path::PathBuf;

use super::error::Error;
use super::keys::{Absent, Key, KeyTable, text};
use super::section::Section;
use crate::auth::Users;

pub(super) static KEYS: KeyTable = KeyTable {
    header: "[auth]",
    about: "Who may authenticate. In this version no listener offers AUTH yet: the users can be \
            administered with `portcullis user` and are checked, and that is all.",
    keys: &[Key::new(
        "users",
        text("a path", Absent::Required),
        "The user file: one user a line, with an argon2 hash of the password. `portcullis user` \
         writes it. It has to be readable for `user`, and for no other user.",
    )
    .see(&["user"])],
    later: &["dovecot"],
};

/// `[auth]`.
#[derive(Clone, Debug)]
pub struct Auth {
    /// The user file.
    pub users_file: PathBuf,
    /// Who is in it; `None` if it was left alone
    /// ([`load_without_lists`](super::load_without_lists)).
    pub users: Option<Users>,
}

/// Reads the table, and the user file unless it is to be left alone.
pub(super) fn read(mut s: Section<'_, '_>, read_file: bool) -> Option<Auth> {
    if !s.is_given() {
        return None;
    }
    let document = s.document;
    let path = s.text("users", |path| match path {
        "" => Err("empty".to_owned()),
        path => Ok(path.to_owned()),
    });
    let auth = path.map(|path| {
        let file = document.resolve(path.get_ref());
        document.names_file(&file);
        let mut users = None;
        if read_file {
            match Users::read(&file) {
                Ok(read) => users = Some(read),
                Err(faults) => {
                    let advice = "`portcullis user add -c FILE NAME` makes the file";
                    for fault in faults {
                        let error = Error::whole_file(&file, fault.to_string());
                        let advice = (!file.exists()).then(|| advice.to_owned());
                        document.error_elsewhere(Error { advice, ..error });
                    }
                }
            }
        }
        Auth {
            users_file: file,
            users,
        }
    });
    document.warn(
        &s.span,
        "no listener offers AUTH in this version: the users of [auth] are checked and not used",
    );
    s.finish();
    auth
}
