//! The one connection to Dovecot's auth socket that the configuration in force asks for.
//!
//! It is made with the configuration and not with the first question, because what Dovecot says to
//! have is what EHLO offers. That goes into the configuration in force, as the addresses of next
//! hops do, and so to the workers. What Dovecot has said last stays while it is away: a client then
//! hears 454, and tries again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use portcullis_smtp::sasl::Mechanisms;
use tokio::sync::watch;

use super::dovecot::{Client, client};
use crate::auth::exchange::Mechanism;
use crate::config::{Auth, BackEnd, Config};
use crate::control::Control;

/// See the [module](self).
#[derive(Debug, Default)]
pub(in crate::control) struct DovecotLink(Mutex<Option<Link>>);

#[derive(Debug)]
struct Link {
    socket: PathBuf,
    client: Client,
    /// What Dovecot has said last.
    announced: Option<Mechanisms>,
    is_up: bool,
}

impl DovecotLink {
    fn lock(&self) -> MutexGuard<'_, Option<Link>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, if it is to this socket.
    pub(super) fn client(&self, socket: &Path) -> Option<Client> {
        let link = self.lock();
        let link = link.as_ref().filter(|link| link.socket == socket);
        link.map(|link| link.client.clone())
    }

    /// Whether Dovecot is there; `None` where it is not asked.
    pub(in crate::control) fn is_up(&self) -> Option<bool> {
        self.lock().as_ref().map(|link| link.is_up)
    }

    /// Fills in what Dovecot has said to have. Returns whether that changed anything.
    pub(in crate::control) fn fill(&self, auth: &mut Option<Auth>) -> bool {
        let link = self.lock();
        let (Some(link), Some(auth)) = (&*link, auth) else {
            return false;
        };
        match &mut auth.back_end {
            BackEnd::Dovecot { socket, announced } if *socket == link.socket => {
                std::mem::replace(announced, link.announced) != link.announced
            }
            _ => false,
        }
    }

    /// Notes what the Dovecot at a socket has said.
    fn note(&self, socket: &Path, mechanisms: &[Mechanism]) {
        let mut link = self.lock();
        let Some(link) = link.as_mut().filter(|link| link.socket == socket) else {
            return;
        };
        // None: it is away.
        link.is_up = !mechanisms.is_empty();
        if link.is_up {
            link.announced = Some(mechanisms.iter().copied().collect());
        }
    }
}

/// Connects as the configuration in force asks for, unless it is so; to be called in the control
/// plane's runtime. A connection that it does not ask for any more ends when the exchanges on it
/// are over.
pub(in crate::control) fn follow(control: &Arc<Control>) {
    let config = control.shared.config.load();
    let wanted = config.auth.as_ref().and_then(Auth::dovecot);
    let mut link = control.dovecot.lock();
    if link.as_ref().map(|link| &*link.socket) == wanted {
        return;
    }
    *link = wanted.map(|socket| {
        let socket = socket.to_owned();
        let (client, connection) = client(socket.clone());
        tokio::spawn(connection);
        let announcements = client.announcements();
        tokio::spawn(listen(Arc::clone(control), socket.clone(), announcements));
        Link {
            socket,
            client,
            announced: None,
            is_up: false,
        }
    });
}

/// Passes on what a Dovecot says to have, for as long as there is a connection to it.
async fn listen(
    control: Arc<Control>,
    socket: PathBuf,
    mut announcements: watch::Receiver<Vec<Mechanism>>,
) {
    while announcements.changed().await.is_ok() {
        let mechanisms = announcements.borrow_and_update().clone();
        control.dovecot.note(&socket, &mechanisms);
        publish(&control);
    }
}

/// Has the workers use what is known. Nothing else runs on the control plane's thread meanwhile, so
/// that a reload is not undone.
pub(in crate::control) fn publish(control: &Control) {
    let config = control.shared.config.load_full();
    let mut auth = config.auth.clone();
    if control.dovecot.fill(&mut auth) {
        let mut config = Config::clone(&config);
        config.auth = auth;
        control.shared.config.store(Arc::new(config));
    }
}
