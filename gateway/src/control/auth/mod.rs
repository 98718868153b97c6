//! Checking passwords off the workers: by the user file on a few threads, or by Dovecot.

pub mod dovecot;
