//! Grants by command: what is asked and answered.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::super::Control;
use super::super::grants::{Grants, now};
use super::caller::Caller;
use super::commands::{Done, NotDone};
use crate::config;

/// How long a grant of an operator can hold.
pub const DURATIONS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);

/// A grant to add or to renew, at `/api/grants/add`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// The address.
    pub address: IpAddr,
    /// How long it holds; without it, as long as the configuration says.
    #[serde(default)]
    pub seconds: Option<u64>,
}

/// A grant to remove, at `/api/grants/revoke`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// The address.
    pub address: IpAddr,
}

/// Whether there was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// It is removed.
    pub revoked: bool,
}

/// A grant in force, as `/api/grants` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantStatus {
    /// The address.
    pub address: IpAddr,
    /// Who wanted it: an operator, or a user and the log that tells of its login.
    pub by: String,
    /// When it was added first, in seconds since 1970.
    pub since: u64,
    /// When it ends, in seconds since 1970.
    pub until: u64,
    /// Seconds until it ends.
    pub expires_in_seconds: u64,
}

impl GrantStatus {
    fn new(address: IpAddr, grant: super::super::grants::Grant) -> Self {
        Self {
            address,
            expires_in_seconds: grant.until.saturating_sub(now()),
            by: grant.by,
            since: grant.since,
            until: grant.until,
        }
    }
}

/// The grants in force, by address.
pub(super) fn list(control: &Control) -> Vec<GrantStatus> {
    let grants = control.grants.iter().flat_map(|grants| grants.list());
    let status = grants.map(|(address, grant)| GrantStatus::new(address, grant));
    status.collect()
}

pub(super) fn add_at(control: &Control, request: &Add, by: &Caller) -> Result<Done, NotDone> {
    let grants = held(control)?;
    let time = request.seconds.map(Duration::from_secs);
    if time.is_some_and(|time| !DURATIONS.contains(&time)) {
        let why = "a grant is for 1 to 2592000 seconds";
        return Err(NotDone::new(StatusCode::BAD_REQUEST, why));
    }
    let address = request.address.to_canonical();
    if !config::Grants::may_have(address) {
        let why = format!("{address} is no address of a client");
        return Err(NotDone::new(StatusCode::BAD_REQUEST, why));
    }
    let by = format!("operator {by}");
    let added = grants.add(address, time, &by, true, now()).map_err(|_| {
        let why = "there are as many grants as grants.max allows";
        NotDone::new(StatusCode::INSUFFICIENT_STORAGE, why)
    })?;
    let status = GrantStatus::new(address, added);
    let summary = format!("{address} for {} seconds", status.expires_in_seconds);
    Done::new(&status, summary)
}

pub(super) fn revoke_at(control: &Control, request: &Revoke, by: &Caller) -> Result<Done, NotDone> {
    let address = request.address.to_canonical();
    let revoked = held(control)?.revoke(address, &format!("operator {by}"));
    let summary = if revoked { "revoked" } else { "had none" };
    Done::new(&Revoked { revoked }, format!("{address} {summary}"))
}

fn held(control: &Control) -> Result<&Grants, NotDone> {
    control.grants.as_deref().ok_or_else(|| {
        let why = "this gate has no grants: add [grants] to its configuration, and restart it";
        NotDone::new(StatusCode::CONFLICT, why)
    })
}
