//! SIGHUP: the configuration and its lists are read again. A change of their files: the lists
//! alone.
//!
//! All or nothing: what cannot be read changes nothing, and neither does what the kernel does not
//! take. Reading and filling the filter happen off this thread and off the workers; what reaches
//! the workers is one pointer. Sessions that are open go on under the new configuration from their
//! next command.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::signal::unix::Signal;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::{Control, HeldFilter, changes, lists, names, notify};
use crate::config::{self, Config, Errors};
use crate::filter;
use crate::lists::private;

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
    /// Held by whoever changes what is in force.
    alone: Mutex<()>,
}

/// Why nothing was changed.
#[derive(Debug)]
pub(super) enum Refused {
    Configuration(Errors),
    /// Lists lost more than they may, or would newly refuse more.
    Lists(lists::Refusal),
    Filter(filter::Error),
    /// The task that read it ended.
    Lost,
}

/// What a reload did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    changed: Vec<String>,
    kept: Vec<&'static str>,
}

/// Reloads at every SIGHUP. Those that come during a reload are followed by one more.
pub(super) async fn at_every_hangup(control: Arc<Control>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        let config = control.shared.config.load_full();
        let Some(path) = &config.path else {
            tracing::warn!("there is no configuration file that could be read again");
            continue;
        };
        notify::reloading();
        match reload(&control, path).await {
            Ok(done) => {
                control.reloads.good.fetch_add(1, Ordering::Relaxed);
                done.log("reloaded");
            }
            Err(refused) => {
                control.reloads.bad.fetch_add(1, Ordering::Relaxed);
                refused.log("not reloaded: all stays as it was", &control);
            }
        }
        notify::ready();
    }
}

/// Puts the file's configuration in force, or changes nothing.
async fn reload(control: &Arc<Control>, path: &Path) -> Result<Done, Refused> {
    let _alone = control.reloads.alone.lock().await;
    let path = path.to_owned();
    let read = spawn_blocking(move || config::load_into(&path, filter::memory)).await;
    let mut new = read
        .map_err(|_| Refused::Lost)?
        .map_err(Refused::Configuration)?;
    let old = control.shared.config.load_full();
    let kept = changes::keep_what_cannot_change(&old, &mut new, control.filter.is_some());
    let mut changed = changes::differences(&old, &new, &kept);
    control.names.look_up(&new.routes).await;
    put_in_force(control, old, new).await?;
    changed.extend(attach_again(control).await?);
    Ok(Done { changed, kept })
}

/// Puts the filter back on the interfaces of the configuration that are without it, whoever took it
/// off.
async fn attach_again(control: &Arc<Control>) -> Result<Vec<String>, Refused> {
    let control = Arc::clone(control);
    let mended = spawn_blocking(move || {
        let held = control.filter.as_ref();
        held.map_or(Vec::new(), |held| held.lock().mend(&[], true))
    });
    let mended = mended.await.map_err(|_| Refused::Lost)?;
    let told = |interface| format!("interface {interface} (the filter is attached again)");
    Ok(mended.into_iter().map(told).collect())
}

/// Reads the lists of the configuration in force again, and puts them in force, or changes nothing.
pub(super) async fn lists(control: &Arc<Control>) -> Result<Done, Refused> {
    let _alone = control.reloads.alone.lock().await;
    let old = control.shared.config.load_full();
    let allocate = if control.filter.is_some() {
        filter::memory
    } else {
        private
    };
    let config = Arc::clone(&old);
    let read = spawn_blocking(move || config.with_lists_again(allocate)).await;
    let new = read
        .map_err(|_| Refused::Lost)?
        .map_err(Refused::Configuration)?;
    let changed = changes::list_differences(&old, &new);
    put_in_force(control, old, new).await?;
    Ok(Done {
        changed,
        kept: Vec::new(),
    })
}

async fn put_in_force(
    control: &Arc<Control>,
    old: Arc<Config>,
    mut new: Config,
) -> Result<(), Refused> {
    control.names.fill(&mut new.routes);
    let new = Arc::new(new);
    let refusal = {
        let (old, new) = (Arc::clone(&old), Arc::clone(&new));
        let checked = spawn_blocking(move || lists::refusal(&old, &new)).await;
        checked.map_err(|_| Refused::Lost)?
    };
    if !refusal.is_empty() {
        return Err(Refused::Lists(refusal));
    }
    if control.filter.is_some() {
        let (control, new) = (Arc::clone(control), Arc::clone(&new));
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
    control.shared.config.store(new);
    // What was looked up while the filter was being filled.
    names::publish(control);
    Ok(())
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

impl Done {
    pub(super) fn log(&self, what: &str) {
        for kept in &self.kept {
            tracing::warn!(
                "{kept} cannot change while the gate runs; the old value stays until a restart"
            );
        }
        if self.changed.is_empty() {
            let else_ = if self.kept.is_empty() { "" } else { " else" };
            tracing::info!("{what}; nothing{else_} has changed");
        } else {
            tracing::info!(changed = self.changed.join(", "), "{what}");
        }
    }
}

impl Refused {
    pub(super) fn log(&self, what: &str, control: &Control) {
        match self {
            Self::Configuration(Errors(errors)) => {
                let lines = errors.iter().map(config::Error::one_line);
                lines.for_each(|line| tracing::error!("{line}"));
            }
            Self::Lists(refusal) => {
                let told = refusal.told(&control.shared.config.load());
                told.iter().for_each(|line| tracing::error!("{line}"));
            }
            Self::Filter(error) => tracing::error!("{error}"),
            Self::Lost => tracing::error!("reading the configuration ended in a panic"),
        }
        tracing::error!("{what}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::control::files::Files;
    use crate::control::log;
    use crate::control::names::Names;
    use crate::worker::Shared;
    use std::time::Instant;

    const GOOD: &str = "workers = 1\n[[listener]]\naddress = \"127.0.0.1:2525\"\n\
                        [[route]]\ndomains = [\"*\"]\nnext_hop = [\"192.0.2.1:25\"]\n[limits]\nsessions = 5\n";

    /// A control plane without workers, and the file of its configuration.
    fn control(directory: &Path) -> (Arc<Control>, PathBuf) {
        let file = directory.join("portcullis.toml");
        fs::write(&file, GOOD).unwrap();
        let config = config::load(&file).unwrap_or_else(|errors| panic!("{errors}"));
        let control = Control {
            log_level: log::Level::of_no_log(),
            shared: Arc::new(Shared::new(Arc::new(config))),
            workers: Vec::new(),
            filter: None,
            names: Names::default(),
            files: Files::default(),
            dnsbl: Arc::default(),
            refusals: Default::default(),
            drops: Default::default(),
            reloads: Reloads::default(),
            since: Instant::now(),
        };
        (Arc::new(control), file)
    }

    fn reload_now(control: &Arc<Control>, file: &Path) -> Result<Done, Refused> {
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
