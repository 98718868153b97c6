//! The life of a gate: start, serve, stop.
//!
//! Signals are taken over first, so that an early one does not end it. Then comes what can
//! fail, before anything is served: the filter, so that no listed source gets as far as a
//! handshake, then sockets and rings, then the user. The filter stays in place when the gate ends,
//! however that happens; `portcullis filter detach` takes it away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;

use super::auth::{self, DovecotLink, Passwords};
use super::dropped::Drops;
use super::files::{self, Files};
use super::grants::{self, Grants};
use super::lists::Started;
use super::names::Names;
use super::port::{Ports, Services};
use super::records::{LogWriter, Records};
use super::refusals::{self, Refusals};
use super::reload::{self, Reloads};
use super::start::{self, PreparedWorker, WorkerEnd};
use super::user::User;
use super::{
    Control, Error, HeldFilter, admin, dnsbl, dropped, interfaces, lists, log, names, notify,
};
use crate::config::{Config, FilterMode, Pending};
use crate::filter::{self, Filter};
use crate::worker::records::SCHEMA;
use crate::worker::{Life, Shared};

/// Serves until SIGTERM or SIGINT: the first lets what is in flight finish, the second stops at
/// once. SIGHUP reloads.
///
/// # Errors
/// When the gate cannot start, or a worker failed.
pub fn serve(pending: Pending, log_level: log::Level) -> Result<(), Error> {
    let user = pending.config.user.as_deref().map(User::find).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Io("start the control plane", error))?;
    let signals = {
        let _inside = runtime.enter();
        Signals::new()?
    };
    let Started { config, errors } = lists::start(pending).map_err(Error::Configuration)?;
    for warning in &config.warnings {
        tracing::warn!("{}", warning.one_line());
    }
    errors.iter().for_each(|line| tracing::error!("{line}"));
    let held = Held {
        filter: attach(&config)?,
        workers: start::prepare(&config)?,
        admin: admin::Held::take(&config.admin, user.as_ref())?,
    };
    files::make_state_dir(&config, user.as_ref());
    if let Some(user) = user {
        if let Some(filter) = &held.filter
            && let Err(error) = filter.chown_links(user.uid(), user.gid())
        {
            tracing::warn!(
                %error,
                "an interface that is deleted and made again will stay unfiltered until a restart"
            );
        }
        user.take_on(held.filter.is_some())?;
    }
    start::try_thread()?;
    let served = runtime.block_on(live(config, held, signals, log_level));
    // A look-up that hangs in the resolver does not hold up the end.
    runtime.shutdown_background();
    served
}

/// What was taken with all privileges.
struct Held {
    filter: Option<Filter>,
    workers: Vec<PreparedWorker>,
    admin: admin::Held,
}

/// Puts the filter in place, unless its mode is `off`. One of an earlier run, which may drop, is
/// switched off then.
fn attach(config: &Config) -> Result<Option<Filter>, Error> {
    let settings = config.filter.as_ref();
    // One that this start takes over is reported below.
    let taken_over = settings.map(|settings| &settings.pin_path);
    for found in interfaces::unconfigured(config, false) {
        if Some(&found.pin_path) != taken_over {
            tracing::warn!("{}; `{}` takes it off", found.text, found.removal);
        }
    }
    let Some(settings) = settings else {
        return Ok(None);
    };
    if settings.mode == FilterMode::Off {
        if filter::attached_filter(&settings.pin_path).is_none() {
            return Ok(None);
        }
        tracing::warn!(
            "filter.mode is off: the filter of an earlier run stays in place and passes \
             everything; `{}` takes it away",
            filter::detach_command(&settings.pin_path)
        );
    }
    let attached = Filter::attach(settings, config.policy.lists()).map_err(Error::Filter)?;
    if filter::pins_are_private(&settings.pin_path) == Some(true) {
        tracing::warn!("{}", interfaces::PINS_ARE_PRIVATE);
    }
    Ok(Some(attached))
}

async fn live(
    mut config: Config,
    mut held: Held,
    signals: Signals,
    log_level: log::Level,
) -> Result<(), Error> {
    let Signals { mut stop, hangup } = signals;
    let admin = admin::Listeners::of(held.admin)
        .map_err(|error| Error::Io("serve at the admin endpoints", error))?;
    let names = Names::default();
    names.look_up(&config.routes).await;
    names.fill(&mut config.routes);
    if let Some(filter) = &mut held.filter {
        tell_commands(filter, admin.address());
    }
    let events = held.filter.as_mut().and_then(Filter::take_events);
    let verdicts = held.filter.as_ref().map(Filter::verdicts);
    let shared = Arc::new(Shared::new(Arc::new(config)));
    let grants = open_grants(&shared, held.filter.as_mut());
    let mut ports = Ports::default();
    let records = Arc::new(Records::default());
    let is_user = shared.config.load().user.is_some();
    let log_writer = LogWriter::start(&records, is_user)
        .map_err(|error| Error::Io("start the thread that writes the log", error))?;
    let refusals = records.subscribe("refusals", refusals::BYTES_MAX);
    let (workers, ends) = start::run(held.workers, &shared, &mut ports, &records)?;
    let ports = Arc::new(ports);
    let control = Arc::new(Control {
        shared,
        workers,
        filter: held.filter.map(HeldFilter::new),
        names,
        dovecot: DovecotLink::default(),
        files: Files::default(),
        ports: Arc::clone(&ports),
        dnsbl: Arc::default(),
        grants: grants.clone(),
        refused: admin::Refused::default(),
        records: Arc::clone(&records),
        refusals: Refusals::default(),
        drops: Drops::default(),
        reloads: Reloads::default(),
        log_level,
        since: Instant::now(),
    });
    if let Some(events) = events.filter(|_| admin.serves()) {
        tokio::spawn(dropped::read_drops(Arc::clone(&control), events));
    }
    admin.serve(&control);
    if let Some(verdicts) = &verdicts {
        tokio::spawn(dropped::sweep_verdicts(Arc::clone(verdicts)));
        tokio::spawn(dropped::watch_answers(Arc::clone(&control)));
    }
    interfaces::watch(&control)?;
    tokio::spawn(names::keep_fresh(Arc::clone(&control)));
    let (dnsbl, requests) = dnsbl::requests(&control.dnsbl);
    let passwords = Passwords::new(&control, verdicts.clone());
    auth::follow(&control);
    tokio::spawn(dnsbl::serve(Arc::clone(&control), requests, verdicts));
    tokio::spawn(Services { dnsbl, passwords }.serve(ports));
    if let Some(grants) = &grants {
        grants::start(grants, &control.shared.config.load());
    }
    control.files.try_all(&control.shared.config.load());
    tokio::spawn(files::watch(Arc::clone(&control)));
    lists::save(&control, &control.shared.config.load_full());
    tokio::spawn(super::watch::run(Arc::clone(&control)));
    tokio::spawn(reload::at_every_hangup(Arc::clone(&control), hangup));
    tokio::spawn(refusals::read(Arc::clone(&control), refusals));
    tokio::spawn({
        let records = Arc::clone(&records);
        async move { records.serve().await }
    });
    announce(&control);
    let watched = watch(&control, ends, &mut stop).await;
    if let Some(grants) = &grants {
        grants.keep();
    }
    log_writer.finish(&records).await;
    tracing::info!("stopped");
    watched
}

/// The grants, before anything is served. Those that an earlier run has left in the filter end
/// here, unless they were kept.
fn open_grants(shared: &Shared, filter: Option<&mut Filter>) -> Option<Arc<Grants>> {
    let config = shared.config.load();
    let in_filter = filter.and_then(Filter::take_grants);
    let Some(settings) = &config.grants else {
        if let Some(Err(error)) = in_filter.map(|grants| grants.replace(&[])) {
            tracing::warn!(%error, "grants of an earlier run stay in the filter until they end");
        }
        return None;
    };
    let granted = Arc::clone(&shared.granted);
    let grants = Grants::open(
        settings,
        &config.state_dir,
        granted,
        in_filter,
        grants::now(),
    );
    Some(Arc::new(grants))
}

/// Lets commands beside this gate find it. Without it they need its address.
fn tell_commands(filter: &mut Filter, address: Option<SocketAddr>) {
    if let Err(error) = filter.set_admin(address) {
        tracing::warn!(%error, "commands beside this gate cannot find its admin endpoint");
    }
}

fn announce(control: &Control) {
    let config = control.shared.config.load();
    let addresses = config.listeners.iter();
    let addresses: Vec<String> = addresses
        .map(|listener| listener.address.to_string())
        .collect();
    tracing::info!(
        listening = addresses.join(" "),
        workers = control.workers.len(),
        filter = control.filter.is_some(),
        schema = SCHEMA,
        "serving"
    );
    notify::ready();
}

/// Waits for the end of all workers, and passes on the signals that come meanwhile. A worker that
/// ends by itself takes the gate with it: half a gate would turn clients away for no reason that
/// they or their operator could see.
async fn watch(
    control: &Control,
    mut ends: UnboundedReceiver<WorkerEnd>,
    stop: &mut Stop,
) -> Result<(), Error> {
    let mut life = Life::Running;
    let mut failed = None;
    let mut running = control.workers.len();
    let only_filter = running == 0;
    while running > 0 || (only_filter && life == Life::Running) {
        tokio::select! {
            () = stop.asked() => {
                life = if life == Life::Running { Life::Draining } else { Life::Stopping };
                turn(control, life);
            }
            Some(WorkerEnd { index, result }) = ends.recv() => {
                running -= 1;
                let error = match result {
                    Ok(()) if life == Life::Running => {
                        std::io::Error::other("it ended for no reason")
                    }
                    Ok(()) => continue,
                    Err(error) => error,
                };
                tracing::error!(worker = index, %error, "a worker failed");
                failed.get_or_insert(Error::Worker { index, error });
                if life == Life::Running {
                    life = Life::Draining;
                    turn(control, life);
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

fn turn(control: &Control, life: Life) {
    tracing::info!(at_once = life == Life::Stopping, "stopping");
    notify::stopping();
    control.shared.set_life(life);
    control
        .workers
        .iter()
        .for_each(|worker| worker.waker.wake());
}

/// The signals that mean something to a gate.
struct Signals {
    stop: Stop,
    /// Asks it to read its configuration again.
    hangup: Signal,
}

/// What asks the gate to stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            stop: Stop {
                terminate: listen_for(SignalKind::terminate())?,
                interrupt: listen_for(SignalKind::interrupt())?,
            },
            hangup: listen_for(SignalKind::hangup())?,
        })
    }
}

impl Stop {
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn listen_for(kind: SignalKind) -> Result<Signal, Error> {
    signal(kind).map_err(|error| Error::Io("listen for signals", error))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::super::start::RunningWorker;
    use super::*;
    use crate::driver::ring::{PreparedRing, RingSettings};

    /// A control plane that believes in this many workers, and watches over them until they end so.
    fn watch_over(ends: Vec<io::Result<()>>) -> (Result<(), Error>, Arc<Control>) {
        let worker = |_| RunningWorker {
            waker: PreparedRing::new(RingSettings::default()).unwrap().waker(),
            counters: Arc::default(),
        };
        let control = Arc::new(Control {
            workers: (0..ends.len()).map(worker).collect(),
            ..Control::idle(Config::default_gate())
        });
        let (to, received) = mpsc::unbounded_channel();
        for (index, result) in ends.into_iter().enumerate() {
            assert!(to.send(WorkerEnd { index, result }).is_ok());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let watched = runtime.block_on(async {
            let mut signals = Signals::new().unwrap();
            let watching = watch(&control, received, &mut signals.stop);
            tokio::time::timeout(Duration::from_secs(10), watching).await
        });
        (watched.expect("all have ended"), control)
    }

    #[test]
    fn a_worker_that_fails_ends_the_gate_with_its_error() {
        let broken = || Err(io::Error::other("the ring is broken"));
        let (watched, control) = watch_over(vec![Ok(()), broken()]);
        let error = watched.unwrap_err().to_string();
        assert!(error.contains("worker 0"), "{error}");
        drop(control);
        let (watched, _) = watch_over(vec![broken(), Ok(())]);
        let error = watched.unwrap_err().to_string();
        assert!(
            error.contains("worker 0") && error.contains("the ring is broken"),
            "{error}"
        );
    }
}
