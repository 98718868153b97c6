//! What the connections of trusted fronts begin with, as it is counted.

/// What a connection of a trusted front began with, that has to begin with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderResult {
    /// A header that names a client.
    Client,
    /// That of a health check: `LOCAL`, or one that names the front itself.
    Local,
    /// One without an address of the client (`UNKNOWN`).
    Unknown,
    /// Something else, or part of a header.
    Bad,
    /// Nothing: it was closed before, or the gate stopped.
    Missing,
    /// It was not there in time.
    Late,
}

impl HeaderResult {
    pub(super) const ALL: [Self; 6] = [
        Self::Client,
        Self::Local,
        Self::Unknown,
        Self::Bad,
        Self::Missing,
        Self::Late,
    ];

    /// The word for it in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Local => "local",
            Self::Unknown => "unknown",
            Self::Bad => "bad",
            Self::Missing => "missing",
            Self::Late => "late",
        }
    }
}
