//! The kernel, io_uring, the limits and the user.

use portcullis_uring::{Missing, missing_features};

use super::Finding;
use crate::config::Config;
use crate::control::start;
use crate::control::user::User;

/// The release whose io_uring has all that a worker uses.
const KERNEL_MIN: (u32, u32) = (6, 13);
/// The release whose XDP has all that the filter uses.
const KERNEL_MIN_FILTER: (u32, u32) = (5, 15);

pub(super) fn kernel() -> Finding {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    judge_kernel(&release)
}

fn judge_kernel(release: &str) -> Finding {
    let found = format!("Linux {release}");
    match version(release) {
        Some(version) if version >= KERNEL_MIN => Finding::ok("kernel", found),
        Some(version) if version >= KERNEL_MIN_FILTER => Finding::problem(
            "kernel",
            found,
            "it is new enough for the filter alone; the relay needs Linux 6.13 or newer",
        ),
        _ => Finding::problem("kernel", found, "Linux 6.13 or newer is needed"),
    }
}

/// `6.18.44-amd64` as (6, 18).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn ring() -> Finding {
    match missing_features() {
        Ok(missing) if missing.is_empty() => {
            Finding::ok("io_uring", "the machine has all that is needed")
        }
        Ok(missing) => {
            let named =
                |missing: &Missing| format!("{} (Linux {})", missing.feature, missing.since);
            let missing: Vec<String> = missing.iter().map(named).collect();
            let found = format!("missing: {}", missing.join(", "));
            Finding::problem("io_uring", found, "Linux 6.13 or newer is needed")
        }
        Err(why) => Finding::problem("io_uring", "not available", why),
    }
}

/// The table of a ring may not be larger than the limit of open files.
pub(super) fn descriptors(config: &Config) -> Finding {
    let subject = "open files";
    let Ok((_, hard)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
    else {
        return Finding::warning(subject, "the limit cannot be read", "look at `ulimit -Hn`");
    };
    judge_descriptors(config, hard)
}

fn judge_descriptors(config: &Config, hard: u64) -> Finding {
    if let Some(slots) = start::slots_beyond(config, hard) {
        // The table grows a little with the limit: next hops have a part of it.
        let needed = 2 * u64::from(slots);
        return Finding::problem(
            "open files",
            format!(
                "a limit of {hard} is too low: the table of each worker has {slots} entries at \
                 least"
            ),
            format!(
                "raise the limit to {needed} or more (LimitNOFILE={needed}, or `ulimit -Hn \
                 {needed}`)"
            ),
        );
    }
    let (sessions, wanted) = (start::sessions_max(config, hard), config.limits.sessions);
    if sessions >= wanted {
        let found = format!("a limit of {hard} is enough for {wanted} sessions");
        return Finding::ok("open files", found);
    }
    let workers = config.workers;
    let found = format!(
        "a limit of {hard} bounds the table of each worker: {sessions} sessions in all, {wanted} \
         are configured"
    );
    let needed = u64::from(wanted.div_ceil(workers as u32))
        + hard.saturating_sub(u64::from(sessions) / workers as u64);
    let next_step = format!(
        "raise the limit to {needed} (LimitNOFILE={needed}, or `ulimit -Hn {needed}`), or lower \
         limits.sessions"
    );
    Finding::warning("open files", found, next_step)
}

pub(super) fn user(config: &Config) -> Option<Finding> {
    let name = config.user.as_deref()?;
    Some(match User::find(name) {
        Err(error) => Finding::problem("user", format!("{name} cannot be found"), error),
        Ok(user) if user.is_taken_on() || nix::unistd::geteuid().is_root() => {
            Finding::ok("user", format!("the gate will run as {name}"))
        }
        Ok(_) => Finding::problem(
            "user",
            format!("only root can become {name}"),
            "start as root, or leave `user` out",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_kernel_that_is_too_old_is_found() {
        for (release, level) in [
            ("6.18.44-fc", Level::Ok),
            ("6.13", Level::Ok),
            ("7.0.1", Level::Ok),
            ("6.12.9-amd64", Level::Problem),
            ("6.1.0-13-amd64", Level::Problem),
            ("5.4.0", Level::Problem),
            ("", Level::Problem),
        ] {
            assert_eq!(judge_kernel(release).level, level, "{release}");
        }
    }

    #[test]
    fn a_limit_that_bounds_the_sessions_is_found_and_the_one_to_set_is_enough() {
        let config = Config::default_gate();
        let finding = judge_descriptors(&config, 64);
        assert_eq!(finding.level, Level::Problem, "{finding:?}");
        let finding = judge_descriptors(&config, 20_000);
        assert_eq!(finding.level, Level::Warning, "{finding:?}");
        let next_step = finding.next_step.unwrap();
        let mut numbers = next_step
            .split(|c: char| !c.is_ascii_digit())
            .filter(|n| !n.is_empty());
        let needed = numbers.next().unwrap().parse().unwrap();
        assert_eq!(
            judge_descriptors(&config, needed).level,
            Level::Ok,
            "{next_step}"
        );
    }
}
