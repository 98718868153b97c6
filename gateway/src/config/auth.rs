//! `[auth]`: who may authenticate, by a user file or by Dovecot.
//!
//! The user file is read with the configuration, so that a faulty one is refused as a whole and the
//! users in force stay. Its faults are told by line, but the line itself is not shown: it holds
//! hashes, and what is told may end in a log.

use std::path::{Path, PathBuf};

use portcullis_smtp::sasl::{Mechanism, Mechanisms};

use super::error::Error;
use super::keys::{Absent, Form, Key, KeyTable, text};
use super::section::Section;
use crate::auth::Users;

pub(super) static KEYS: KeyTable = KeyTable {
    header: "[auth]",
    about: "Who may authenticate, on the listeners that offer AUTH: either a user file or the auth \
            socket of Dovecot. Passwords are checked off the workers. Wrong ones are slowed down \
            and counted by source, by network and by user; a source with many of them gets a \
            recent verdict of the filter.",
    keys: &[
        Key::new(
            "users",
            text("a path", Absent::Nothing),
            "The user file: one user a line, with an argon2 hash of the password. `portcullis \
             user` writes it. It has to be readable for `user`, and for no other user.",
        )
        .see(&["user", "auth.dovecot", "listener.auth"]),
        Key::new(
            "dovecot",
            text("a path", Absent::Nothing),
            "The auth socket of Dovecot (`service auth`, `unix_listener auth-client`), in place of \
             `users`. `user` has to be permitted to open it. While Dovecot is away, clients that \
             authenticate hear 454.",
        )
        .see(&["user", "auth.users", "listener.auth"]),
        Key::new(
            "mechanisms",
            Form::Texts {
                what: "mechanisms of SASL",
                default: Absent::Is(&["PLAIN", "LOGIN", "SCRAM-SHA-256"]),
            },
            "What clients may use, of what is there: SCRAM-SHA-256 if a user has keys for it, or \
             if Dovecot has it.",
        )
        .see(&["listener.auth"]),
    ],
    later: &[],
};

/// `[auth]`.
#[derive(Clone, Debug)]
pub struct Auth {
    /// What knows the users.
    pub back_end: BackEnd,
    /// What clients may use, if the back end has it.
    pub allowed: Mechanisms,
}

/// What knows the users.
#[derive(Clone, Debug)]
pub enum BackEnd {
    /// A file.
    Users {
        /// The user file.
        file: PathBuf,
        /// Who is in it; `None` if it was left alone
        /// ([`load_without_lists`](super::load_without_lists)).
        users: Option<Users>,
    },
    /// The auth socket of Dovecot.
    Dovecot {
        /// The socket.
        socket: PathBuf,
        /// The mechanisms that it has said to have; `None` before it was reached.
        announced: Option<Mechanisms>,
    },
}

impl Auth {
    /// The mechanisms that are offered. Those of a Dovecot that was not reached yet are the ones
    /// that every client has: it hears 454, which it takes as a reason to try again.
    pub fn mechanisms(&self) -> Mechanisms {
        let has = |mechanism: Mechanism| match &self.back_end {
            BackEnd::Users { users, .. } => {
                let have_scram = || users.as_ref().is_some_and(Users::have_scram);
                mechanism != Mechanism::ScramSha256 || have_scram()
            }
            BackEnd::Dovecot { announced, .. } => match announced {
                Some(announced) => announced.contains(mechanism),
                None => mechanism != Mechanism::ScramSha256,
            },
        };
        self.allowed.iter().filter(|it| has(*it)).collect()
    }

    /// The users of the file.
    pub fn users(&self) -> Option<&Users> {
        match &self.back_end {
            BackEnd::Users { users, .. } => users.as_ref(),
            BackEnd::Dovecot { .. } => None,
        }
    }

    /// The socket of Dovecot.
    pub fn dovecot(&self) -> Option<&Path> {
        match &self.back_end {
            BackEnd::Users { .. } => None,
            BackEnd::Dovecot { socket, .. } => Some(socket),
        }
    }
}

/// Reads the table, and the user file unless it is to be left alone.
pub(super) fn read(mut s: Section<'_, '_>, read_file: bool) -> Option<Auth> {
    if !s.is_given() {
        return None;
    }
    let document = s.document;
    let path = |path: &str| match path {
        "" => Err("empty".to_owned()),
        path => Ok(path.to_owned()),
    };
    let users = s.text("users", path);
    let dovecot = s.text("dovecot", path);
    let back_end = match (users, dovecot) {
        (Some(file), None) => Some(read_users(&s, document.resolve(file.get_ref()), read_file)),
        (None, Some(socket)) => Some(BackEnd::Dovecot {
            socket: document.resolve(socket.get_ref()),
            announced: None,
        }),
        (Some(_), Some(dovecot)) => {
            let message = "there is `users` and `dovecot`: the users are either in the one or in \
                           the other";
            document.error_with(&dovecot.span(), message, "leave one of them out");
            None
        }
        (None, None) => {
            // One that is empty was complained of.
            if !s.has("users") && !s.has("dovecot") {
                let message = "neither `users` nor `dovecot` is in this [auth]";
                document.error_with(&s.span, message, "users = \"users\"");
            }
            None
        }
    };
    let allowed = read_mechanisms(&mut s);
    s.finish();
    let back_end = back_end?;
    Some(Auth { back_end, allowed })
}

fn read_users(s: &Section<'_, '_>, file: PathBuf, read_file: bool) -> BackEnd {
    let document = s.document;
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
    BackEnd::Users { file, users }
}

fn read_mechanisms(s: &mut Section<'_, '_>) -> Mechanisms {
    let mechanism = |name: &str| {
        let known = Mechanism::from_name(name.as_bytes());
        let all = || Mechanism::ALL.map(Mechanism::name).join(", ");
        known.ok_or_else(|| format!("there are {}", all()))
    };
    if s.is_empty_list("mechanisms") {
        let message = "no mechanism: no client could authenticate";
        let advice = "leave [auth] out where there is no AUTH";
        s.document
            .error_with(&s.span_of("mechanisms"), message, advice);
    }
    match s.texts("mechanisms", mechanism) {
        Some(given) => given.into_iter().map(toml::Spanned::into_inner).collect(),
        None => s
            .default_texts("mechanisms", mechanism)
            .into_iter()
            .collect(),
    }
}
