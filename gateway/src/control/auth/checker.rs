//! The threads that check passwords: a few, with a bounded queue before them.
//!
//! An argon2 hash takes tens of milliseconds and 19 MiB. So many run at a time as there are
//! threads, and each thread keeps its memory; what waits is bounded, over all and for one source,
//! so that one that guesses does not keep the others from logging in. What is not wanted any more
//! when its turn comes is not checked.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::auth::{Credentials, Memory, Users};
use crate::control::user::give_up_capabilities;

/// Threads, at most: the workers need the cores.
const THREADS_MAX: usize = 4;
/// Checks that wait, over all sources: some seconds of work for one thread.
const WAITING_MAX: usize = 256;
/// Checks of one source that wait.
const WAITING_PER_SOURCE_MAX: usize = 4;

/// A password to check.
pub(super) struct Check {
    /// The users to check against.
    pub(super) users: Users,
    /// Where the client comes from.
    pub(super) client: IpAddr,
    /// What it said.
    pub(super) credentials: Arc<Credentials>,
    /// After this the answer is not wanted.
    pub(super) due: Instant,
}

/// What came of a check.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// The password is of this user.
    Right(Box<str>),
    /// It is not; this is the name that was given.
    Wrong(Box<str>),
    /// It was not checked, because nothing waits for it any more.
    TooLate,
    /// It was not checked, because too many are waiting.
    TooMany,
}

type Done = Box<dyn FnOnce(Checked) + Send>;

/// The threads with their queue. They end with it.
pub(super) struct Checker {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Check, Done)>,
    by_source: HashMap<IpAddr, usize>,
    is_closed: bool,
}

impl Checker {
    /// Starts half as many threads as there are cores, at most four.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::with_threads((cores / 2).clamp(1, THREADS_MAX))
    }

    fn with_threads(number: usize) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let checker = Self {
            shared: Arc::clone(&shared),
        };
        for number in 0..number {
            let shared = Arc::clone(&shared);
            let name = format!("passwords-{number}");
            thread::Builder::new()
                .name(name)
                .spawn(move || shared.work())?;
        }
        Ok(checker)
    }

    /// Has a password checked. `done` is called once: on another thread, or at once if too many
    /// are waiting; not at all if the gate ends before.
    pub(super) fn check(&self, check: Check, done: Done) {
        match self.shared.lock().put(check, done) {
            Ok(()) => self.shared.changed.notify_one(),
            Err(done) => done(Checked::TooMany),
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.is_closed = true;
        queue.waiting.clear();
        drop(queue);
        self.shared.changed.notify_all();
    }
}

impl Queue {
    /// Gives back what there is no room for.
    fn put(&mut self, check: Check, done: Done) -> Result<(), Done> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(done);
        }
        let of_source = self.by_source.entry(source(check.client)).or_default();
        if *of_source >= WAITING_PER_SOURCE_MAX {
            return Err(done);
        }
        *of_source += 1;
        self.waiting.push_back((check, done));
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        // They read what strangers send: no thread of these has a capability.
        if let Err(error) = give_up_capabilities() {
            tracing::warn!(%error, "a thread for passwords cannot give up its capabilities");
        }
        let mut memory = Memory::default();
        while let Some((check, done)) = self.next() {
            let Check {
                users,
                credentials,
                due,
                ..
            } = check;
            if Instant::now() >= due {
                done(Checked::TooLate);
                continue;
            }
            let user = users.check(&credentials, &mut memory);
            let checked = match user {
                Some(user) => Checked::Right(user.name.clone()),
                None => Checked::Wrong(credentials.name.clone()),
            };
            done(checked);
        }
    }

    /// Waits for the next check; `None`: the gate ends.
    fn next(&self) -> Option<(Check, Done)> {
        let mut queue = self.lock();
        loop {
            if queue.is_closed {
                return None;
            }
            if let Some((check, done)) = queue.waiting.pop_front() {
                let source = source(check.client);
                if let Some(number) = queue.by_source.get_mut(&source) {
                    *number -= 1;
                    if *number == 0 {
                        queue.by_source.remove(&source);
                    }
                }
                return Some((check, done));
            }
            let woken = self.changed.wait(queue);
            queue = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// An IPv4 address, or an IPv6 /64.
fn source(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use zeroize::Zeroizing;

    use super::*;
    use crate::auth::edit::{self, Fields};
    use crate::auth::{Password, PasswordHash};

    fn password(text: &str) -> Password {
        Password::new(Zeroizing::new(text.as_bytes().to_vec())).unwrap()
    }

    fn users() -> Users {
        let fields = Fields {
            password: Some(PasswordHash::create(&password("wonderland"), &[1; 16]).unwrap()),
            ..Fields::default()
        };
        Users::parse(&edit::add("", "alice", &fields).unwrap()).unwrap()
    }

    fn check(users: &Users, client: [u8; 4], name: &str, text: &str) -> Check {
        Check {
            users: users.clone(),
            client: client.into(),
            credentials: Arc::new(Credentials {
                name: name.into(),
                password: password(text),
            }),
            due: Instant::now() + Duration::from_secs(60),
        }
    }

    /// Where answers go, and what makes them go there.
    fn answers() -> (impl Fn() -> Done, mpsc::Receiver<Checked>) {
        let (to, answers) = mpsc::channel();
        let done = move || -> Done {
            let to = to.clone();
            Box::new(move |checked| {
                let _ = to.send(checked);
            })
        };
        (done, answers)
    }

    fn next(answers: &mpsc::Receiver<Checked>) -> Checked {
        answers
            .recv_timeout(Duration::from_secs(30))
            .expect("an answer")
    }

    #[test]
    fn a_password_is_right_wrong_or_not_checked_any_more() {
        let (users, (done, answers)) = (users(), answers());
        let checker = Checker::with_threads(1).unwrap();
        checker.check(check(&users, [192, 0, 2, 1], "alice", "wonderland"), done());
        assert_eq!(next(&answers), Checked::Right("alice".into()));
        for (name, text) in [("alice", "x"), ("carol", "wonderland"), ("", "x")] {
            checker.check(check(&users, [192, 0, 2, 1], name, text), done());
            assert_eq!(next(&answers), Checked::Wrong(name.into()));
        }
        let late = Check {
            due: Instant::now(),
            ..check(&users, [192, 0, 2, 1], "alice", "wonderland")
        };
        checker.check(late, done());
        assert_eq!(next(&answers), Checked::TooLate);
    }

    #[test]
    fn what_waits_is_bounded_for_a_source_and_over_all_and_room_comes_back() {
        let (users, (done, answers)) = (users(), answers());
        // Without threads nothing is taken.
        let checker = Checker::with_threads(0).unwrap();
        let put = |client: [u8; 4]| {
            checker.check(check(&users, client, "a", "x"), done());
            answers.try_recv() != Ok(Checked::TooMany)
        };
        for _ in 0..WAITING_PER_SOURCE_MAX {
            assert!(put([192, 0, 2, 1]));
        }
        assert!(!put([192, 0, 2, 1]));
        let mut others = 0;
        while put([10, 0, (others / 200) as u8, (others % 200) as u8]) {
            others += 1;
        }
        assert_eq!(others + WAITING_PER_SOURCE_MAX, WAITING_MAX);
        let (taken, _) = checker.shared.next().unwrap();
        assert_eq!(taken.client, IpAddr::from([192, 0, 2, 1]));
        assert!(put([192, 0, 2, 1]));
        drop(checker);
        assert!(answers.try_recv().is_err());
    }

    #[test]
    fn threads_end_with_the_checker() {
        let checker = Checker::with_threads(2).unwrap();
        let shared = Arc::downgrade(&checker.shared);
        drop(checker);
        let begun = Instant::now();
        while shared.upgrade().is_some() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(5));
        }
    }
}
