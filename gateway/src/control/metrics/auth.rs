//! The metrics of AUTH.

use super::text::Text;
use crate::control::state::Auth;

/// What became of attempts to authenticate.
pub(super) fn render(text: &mut Text, auth: &Auth) {
    text.counter(
        "portcullis_auth_attempts_total",
        "Attempts to authenticate, by mechanism and result; unavailable: the password could not be \
         checked.",
    );
    for attempts in &auth.attempts {
        let labels = [
            ("mechanism", attempts.mechanism),
            ("result", attempts.result),
        ];
        text.sample(&labels, attempts.count);
    }
    text.counter(
        "portcullis_auth_unasked_total",
        "Passwords that were not checked because too many questions were outstanding.",
    );
    text.sample(&[], auth.unasked);
    if let Some(is_up) = auth.dovecot_up {
        text.gauge(
            "portcullis_auth_dovecot_up",
            "1 if there is a connection to Dovecot's auth socket.",
        );
        text.sample(&[], u8::from(is_up));
    }
}
