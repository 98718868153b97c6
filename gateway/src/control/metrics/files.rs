//! The metrics of the files and directories that the gate needs.

use super::text::Text;
use crate::control::state::State;

/// What was kept, and what cannot be used.
pub(super) fn render(text: &mut Text, state: &State) {
    text.counter(
        "portcullis_state_saves_total",
        "Attempts to keep the lists in force in the state directory for the next start.",
    );
    text.sample(&[("result", "good")], state.state_dir.saves_good);
    text.sample(&[("result", "failed")], state.state_dir.saves_failed);
    text.gauge(
        "portcullis_state_last_saved_timestamp_seconds",
        "When the lists in force were last kept by this process; 0: not yet.",
    );
    text.sample(&[], state.state_dir.last_saved_at);
    text.gauge(
        "portcullis_file_unusable",
        "1 for each file or directory that this user will need and cannot use; none if all is \
         well.",
    );
    for file in &state.unusable_files {
        let path = file.path.to_string_lossy();
        text.sample(&[("what", file.what), ("path", &path)], 1);
    }
}
