//! Reload. SIGHUP reads the configuration and its lists again; a change of list files reads the
//! lists alone.
//!
//! All or nothing: a configuration with a fault changes nothing, and neither do lists that are
//! refused or a filter that the kernel rejects. The files are read and the filter is filled on a
//! thread of their own, not on a worker; the workers then get one pointer. An open session goes on
//! under the new configuration from its next command.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::signal::unix::Signal;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::changes::Changes;
use super::lists::NotTaken;
use super::{Control, HeldFilter, auth, changes, lists, names, notify};
use crate::config::{self, Config, Errors, Pending};
use crate::filter;
use crate::lists::{Allocate, file};

/// How often it went well, and how often not.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    pub(super) good: AtomicU64,
    pub(super) bad: AtomicU64,
    /// The same for lists that were read again because their files had changed.
    pub(super) lists_good: AtomicU64,
    pub(super) lists_bad: AtomicU64,
    /// Lists that had lost or gained too much.
    pub(super) lists_refused: AtomicU64,
    /// Held while what is in force is changed.
    alone: Mutex<()>,
    last: StdMutex<Option<LastReload>>,
}

/// What became of the last reload.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LastReload {
    /// When it ended, in seconds since 1970.
    at: u64,
    /// What was read: `configuration` or `lists`.
    what: What,
    /// `good`, `bad`, or `refused` by the guard over lists.
    pub(super) result: &'static str,
    #[serde(flatten)]
    changes: Changes,
    /// Why all stayed as it was.
    errors: Vec<String>,
}

/// What is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    /// The configuration with its lists.
    Configuration,
    /// The lists alone.
    Lists,
}

/// Of the errors of a reload, so many are kept to be asked for; the log has all.
const ERRORS_KEPT: usize = 20;

/// Why a reload of a gate without a file does nothing.
pub(super) const NO_FILE: &str = "there is no configuration file that could be read again";

/// Why nothing was changed.
#[derive(Debug)]
pub(super) enum Refused {
    Configuration(Errors),
    /// Lists lost more than they may, or would newly refuse more: what is said of it.
    Lists(Vec<String>),
    /// A snapshot changed while it was read.
    File(file::Error),
    Filter(filter::Error),
    /// The task that read it ended.
    Lost,
}

/// Reloads at every SIGHUP. Those that come during a reload are followed by one more.
pub(super) async fn at_every_hangup(control: Arc<Control>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        if now(&control).await.is_none() {
            tracing::warn!("{NO_FILE}");
        }
    }
}

/// Reloads, and gives what became of it; `None` if the gate was started without a file.
pub(super) async fn now(control: &Arc<Control>) -> Option<LastReload> {
    let config = control.shared.config.load_full();
    let path = config.path.as_ref()?;
    notify::reloading();
    let result = reload(control, path).await;
    let count = match &result {
        Ok(_) => &control.reloads.good,
        Err(_) => &control.reloads.bad,
    };
    count.fetch_add(1, Ordering::Relaxed);
    let last = control.reloads.tell(What::Configuration, &result);
    notify::ready();
    Some(last)
}

/// Puts the file's configuration in force, or changes nothing.
async fn reload(control: &Arc<Control>, path: &Path) -> Result<Changes, Refused> {
    let _alone = control.reloads.alone.lock().await;
    let path = path.to_owned();
    let mut pending = read(move || config::read(&path)).await?;
    let old = control.shared.config.load_full();
    let new = &mut pending.config;
    let kept = changes::keep_what_cannot_change(&old, new, control.filter.is_some());
    control.names.look_up(&new.routes).await;
    let new = put_in_force(control, &old, pending).await?;
    let mut changed = changes::differences(&old, &new, &kept);
    changed.extend(attach_again(control).await?);
    Ok(Changes::new(changed, kept))
}

/// Reads on a thread of its own.
async fn read(
    how: impl FnOnce() -> Result<Pending, Errors> + Send + 'static,
) -> Result<Pending, Refused> {
    let read = spawn_blocking(how).await.map_err(|_| Refused::Lost)?;
    read.map_err(Refused::Configuration)
}

/// Puts the filter back on the interfaces of the configuration that have lost it.
async fn attach_again(control: &Arc<Control>) -> Result<Vec<String>, Refused> {
    let control = Arc::clone(control);
    let mended = spawn_blocking(move || {
        let held = control.filter.as_ref();
        held.map_or(Vec::new(), |held| held.lock().reattach(&[], true))
    });
    let mended = mended.await.map_err(|_| Refused::Lost)?;
    let told = |interface| format!("interface {interface} (the filter is attached again)");
    Ok(mended.into_iter().map(told).collect())
}

/// Reads the lists of the configuration in force again, and puts them in force, or changes nothing.
pub(super) async fn lists(control: &Arc<Control>) -> Result<Changes, Refused> {
    let _alone = control.reloads.alone.lock().await;
    let old = control.shared.config.load_full();
    let config = Arc::clone(&old);
    let pending = read(move || Pending::again(&config)).await?;
    let new = put_in_force(control, &old, pending).await?;
    Ok(Changes::new(
        changes::list_differences(&old, &new),
        Vec::new(),
    ))
}

/// Puts what was read in force: the lists once they are found good, then the settings of the filter
/// with them, then the configuration.
async fn put_in_force(
    control: &Arc<Control>,
    old: &Arc<Config>,
    mut pending: Pending,
) -> Result<Arc<Config>, Refused> {
    control.names.fill(&mut pending.config.routes);
    control.dovecot.fill(&mut pending.config.auth);
    let new = {
        let old = Arc::clone(old);
        let in_kernel = control
            .filter
            .is_some()
            .then_some(filter::memory as Allocate);
        let placed = spawn_blocking(move || lists::in_place_of(&old, pending, in_kernel)).await;
        let placed = placed.map_err(|_| Refused::Lost)?;
        Arc::new(placed.map_err(|error| match error {
            NotTaken::Refused(lines) => Refused::Lists(lines),
            NotTaken::File(error) => Refused::File(error),
        })?)
    };
    if control.filter.is_some() {
        let (control, old, new) = (Arc::clone(control), Arc::clone(old), Arc::clone(&new));
        spawn_blocking(move || match &control.filter {
            Some(held) => update_filter(held, &old, &new),
            None => Ok(()),
        })
        .await
        .map_err(|_| Refused::Lost)?
        .map_err(Refused::Filter)?;
    }
    control.log_level.set(new.log.level);
    for warning in &new.warnings {
        tracing::warn!("{}", warning.one_line());
    }
    control.names.retain(&new.routes);
    lists::save(control, &new);
    control.shared.config.store(Arc::clone(&new));
    if let Some(tls) = &new.tls {
        tls.forget_old_tickets();
    }
    // What was found out while the filter was being filled.
    names::publish(control);
    auth::publish(control);
    auth::follow(control);
    Ok(new)
}

/// Settings and lists, or neither.
fn update_filter(held: &HeldFilter, old: &Config, new: &Config) -> Result<(), filter::Error> {
    let (Some(before), Some(after)) = (&old.filter, &new.filter) else {
        return Ok(());
    };
    let mut filter = held.lock();
    filter.update_settings(after)?;
    filter.update_lists(new.policy.lists()).inspect_err(|_| {
        if let Err(error) = filter.update_settings(before) {
            tracing::error!(%error, "the filter has the new settings with the old lists");
        }
    })
}

impl Reloads {
    /// Logs what became of a reload, keeps it for later requests, and gives it.
    pub(super) fn tell(&self, what: What, result: &Result<Changes, Refused>) -> LastReload {
        let (good, bad) = match what {
            What::Configuration => ("reloaded", "not reloaded: all stays as it was"),
            What::Lists => ("lists reloaded", "the lists stay as they were"),
        };
        let (changes, mut errors, name) = match result {
            Ok(changes) => {
                changes.log(good);
                (changes.clone(), Vec::new(), "good")
            }
            Err(refused) => {
                let lines = refused.lines();
                lines.iter().for_each(|line| tracing::error!("{line}"));
                tracing::error!("{bad}");
                (Changes::default(), lines, refused.name())
            }
        };
        errors.truncate(ERRORS_KEPT);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let last = LastReload {
            at: now.map_or(0, |now| now.as_secs()),
            what,
            result: name,
            changes,
            errors,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last.clone());
        last
    }

    /// The last reload of this process, whatever came of it.
    pub(super) fn last(&self) -> Option<LastReload> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }
}

impl Refused {
    fn name(&self) -> &'static str {
        match self {
            Self::Lists(_) => "refused",
            _ => "bad",
        }
    }

    /// Why nothing was changed, a line each.
    fn lines(&self) -> Vec<String> {
        match self {
            Self::Configuration(Errors(errors)) => {
                errors.iter().map(config::Error::one_line).collect()
            }
            Self::Lists(lines) => lines.clone(),
            Self::File(error) => vec![error.to_string()],
            Self::Filter(error) => vec![error.to_string()],
            Self::Lost => vec!["reading the configuration ended in a panic".to_owned()],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const GOOD: &str = "workers = 1\n[[listener]]\naddress = \"127.0.0.1:2525\"\n\
                        [[route]]\ndomains = [\"*\"]\nnext_hop = \
                        [\"192.0.2.1:25\"]\n[limits]\nsessions = 5\n";

    /// A control plane without workers, and the file of its configuration.
    fn control(directory: &Path) -> (Arc<Control>, PathBuf) {
        let file = directory.join("portcullis.toml");
        fs::write(&file, GOOD).unwrap();
        let config = config::load(&file).unwrap_or_else(|errors| panic!("{errors}"));
        let control = Control::idle(config);
        (Arc::new(control), file)
    }

    fn reload_now(control: &Arc<Control>, file: &Path) -> Result<Changes, Refused> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(reload(control, file))
    }

    #[test]
    fn a_good_configuration_comes_into_force_and_what_changed_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let (control, file) = control(directory.path());
        fs::write(&file, GOOD.replace("sessions = 5", "sessions = 7")).unwrap();
        let done = reload_now(&control, &file).unwrap();
        assert_eq!(done.changed, ["limits.sessions"]);
        assert_eq!(control.shared.config.load().limits.sessions, 7);
    }

    #[test]
    fn what_became_of_the_last_reload_can_be_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let (control, file) = control(directory.path());
        assert!(control.reloads.last().is_none());
        let tell = |text: &str| {
            fs::write(&file, text).unwrap();
            let result = reload_now(&control, &file);
            control.reloads.tell(What::Configuration, &result);
            let last = control.reloads.last().unwrap();
            serde_json::to_value(last).unwrap()
        };
        let good = tell(
            &GOOD
                .replace("sessions = 5", "sessions = 7")
                .replace("2525", "2526"),
        );
        assert_eq!(good["result"], "good");
        assert_eq!(good["what"], "configuration");
        assert_eq!(good["changed"], serde_json::json!(["limits.sessions"]));
        assert_eq!(good["kept"], serde_json::json!(["[[listener]]"]));
        let bad = tell(&"= = =\n".repeat(100));
        assert_eq!(bad["result"], "bad");
        assert_eq!(bad["changed"], serde_json::json!([]));
        let errors = bad["errors"].as_array().unwrap().len();
        assert!((1..=ERRORS_KEPT).contains(&errors), "{errors}");
    }

    #[test]
    fn a_bad_configuration_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (control, file) = control(directory.path());
        let before = control.shared.config.load_full();
        for bad in [
            GOOD.replace("sessions = 5", "sessions = 0"),
            "= = =".to_owned(),
        ] {
            fs::write(&file, bad).unwrap();
            assert!(matches!(
                reload_now(&control, &file),
                Err(Refused::Configuration(_))
            ));
        }
        fs::remove_file(&file).unwrap();
        assert!(matches!(
            reload_now(&control, &file),
            Err(Refused::Configuration(_))
        ));
        assert!(Arc::ptr_eq(&before, &control.shared.config.load_full()));
    }

    #[test]
    fn what_cannot_change_keeps_its_value_while_the_rest_comes_into_force() {
        let directory = tempfile::tempdir().unwrap();
        let (control, file) = control(directory.path());
        let text = GOOD
            .replace("2525", "2526")
            .replace("192.0.2.1", "192.0.2.2");
        fs::write(&file, text).unwrap();
        assert_eq!(reload_now(&control, &file).unwrap().kept, ["[[listener]]"]);
        let config = control.shared.config.load();
        assert_eq!(config.listeners[0].address.port(), 2525);
        assert_eq!(config.routes[0].next_hops[0].to_string(), "192.0.2.2:25");
    }

    #[test]
    fn the_names_of_a_new_configuration_are_resolved_before_it_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let (control, file) = control(directory.path());
        fs::write(&file, GOOD.replace("192.0.2.1:25", "localhost:26")).unwrap();
        reload_now(&control, &file).unwrap();
        let config = control.shared.config.load();
        assert!(!config.routes[0].next_hops[0].addresses().is_empty());
    }
}
