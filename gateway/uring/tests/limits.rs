//! Tables against the limit of open files. It is the process's, so this test has a process of its
//! own.

mod loopback;

use loopback::{Loopback, conn};
use portcullis_uring::{Listener, OperationResult, PreparedRing, Settings, SetupError};

const LIMIT: u64 = 96;

#[test]
fn three_rings_hold_more_connections_than_the_process_may_open_files() {
    lower_the_limit();
    let slots = LIMIT as u32;
    let too_many = PreparedRing::new(Settings {
        slots: slots + 1,
        ..Settings::default()
    });
    match too_many.unwrap_err() {
        SetupError::TableTooLarge { slots_max, .. } => assert_eq!(slots_max, slots),
        other => panic!("{other}"),
    }

    let mut loopbacks: Vec<_> = (0..3).map(|_| Loopback::new(slots)).collect();
    // Every connection has both of its ends in tables: the even slots call, the odd slots are
    // called.
    let mut held = 0;
    for loopback in &mut loopbacks {
        for pair in 0..slots / 2 {
            loopback.ring.connect(conn(pair * 2, 1), loopback.address);
            loopback.ring.accept(Listener(0), conn(pair * 2 + 1, 1));
            for _ in 0..2 {
                match loopback.next().outcome {
                    OperationResult::Connected(Ok(())) | OperationResult::Accepted(Ok(_)) => {
                        held += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    assert_eq!(held, 3 * LIMIT);
}

#[expect(unsafe_code, reason = "setrlimit")]
fn lower_the_limit() {
    let limit = libc::rlimit {
        rlim_cur: LIMIT,
        rlim_max: LIMIT,
    };
    // SAFETY: the pointer is valid during the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
}
