//! Who a client is by its password: the user file, and the SASL exchange (RFC 4954, RFC 4422).
//!
//! Nothing here reaches for the network or the clock. [`users`] reads the file that
//! `portcullis user` writes by [`edit`]; [`exchange`] is one AUTH command on the server's side.
//! What takes long, argon2, is a function of its own ([`Users::check`]): the control plane calls it
//! on threads that are no workers. [`dovecot`] is the protocol of Dovecot's auth socket, for
//! those who have their users there, and [`attempts`] slows down guesses.
//!
//! Whether a user exists cannot be told from outside. An unknown name costs the same argon2, gets
//! the same reply, and for SCRAM a salt of its own that stays the same (RFC 5802 section 9 asks for
//! that much). Passwords are [`Password`]s from the first octet on: wiped when they are dropped,
//! and never shown.

pub mod attempts;
pub mod dovecot;
pub mod edit;
pub mod exchange;
mod password;
mod scram;
pub mod store;
pub mod users;
mod verifier;

pub use password::{Password, name_key};
pub use scram::ScramKeys;
pub use users::{User, Users};
pub use verifier::{Memory, PasswordHash, random_salt};

/// What a client says it is, with the password to check.
#[derive(Debug)]
pub struct Credentials {
    /// The name in the form in which names are compared ([`name_key`]).
    pub name: Box<str>,
    /// What the client gave as its password.
    pub password: Password,
}
