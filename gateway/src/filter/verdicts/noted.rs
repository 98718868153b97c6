//! Taking back the verdicts that one and the same reason has brought about, when it turns out to be
//! none.

use portcullis_ebpf_common::layout::VerdictCounter;

use super::{Cause, Verdicts, note, of_verdict};
use crate::filter::Error;

impl Verdicts {
    /// Takes back those on IPv4 or on IPv6 sources that were given for this cause with this note;
    /// says how many.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be written.
    pub fn remove_noted(&self, cause: Cause, text: &str, of_ipv6: bool) -> Result<u64, Error> {
        let noted = note(text);
        let (removed, _) = self
            .maps()
            .remove_where(VerdictCounter::Removed, |key, verdict| {
                let is_ipv6 = of_verdict(key).addr().is_ipv6();
                verdict.cause == cause.number() && verdict.note == noted && is_ipv6 == of_ipv6
            })?;
        Ok(removed)
    }
}
