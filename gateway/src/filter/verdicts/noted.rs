//! Removes all verdicts with the same cause and note, when that turns out to be a mistake.

use portcullis_ebpf_common::layout::VerdictCounter;

use super::{Cause, Verdicts, note, of_verdict};
use crate::filter::Error;

impl Verdicts {
    /// Removes the verdicts with this cause and note, on IPv6 sources or on IPv4 sources. Returns
    /// how many it removed.
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
