//! A start that serves nothing, for `doctor`: everything that `run` takes before it serves, in the
//! same order and held at the same time.

use super::user::User;
use super::{Error, start};
use crate::config::Config;

/// Takes it all, and lets it go. The process is the user of the configuration afterwards.
pub(crate) fn start(config: &Config) -> Result<(), Error> {
    let user = config.user.as_deref().map(User::find).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Io("start the control plane", error))?;
    let workers = start::rehearse(config)?;
    if let Some(user) = user {
        user.take_on(config.filter.is_some())?;
    }
    start::try_thread()?;
    start::rehearse_threads(workers)?;
    // Held until here, as it is by a gate.
    drop(runtime);
    Ok(())
}
