//! The client against a server that breaks, is late, or says what it should not. What a real
//! Dovecot does with it is in the suite `dovecot`.

use super::*;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixListener;

const SECOND: Duration = Duration::from_secs(1);
const HELLO: &str = "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\tplaintext\n\
    SPID\t1\nCUID\t1\nCOOKIE\tab\nDONE\n";

/// A socket in a directory of its own, and a client of it that runs.
struct Scene {
    _directory: tempfile::TempDir,
    listener: UnixListener,
    client: Client,
}

/// A connection on the server's side.
struct Served {
    lines: BufReader<UnixStream>,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth-client");
        let listener = UnixListener::bind(&path).unwrap();
        let (client, task) = client(path);
        tokio::spawn(task);
        Self {
            _directory: directory,
            listener,
            client,
        }
    }

    async fn accept(&self) -> Served {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut served = Served {
            lines: BufReader::new(stream),
        };
        assert_eq!(served.line().await, "VERSION\t1\t2");
        assert!(served.line().await.starts_with("CPID\t"));
        served
    }

    /// A connection that is ready.
    async fn ready(&mut self) -> Served {
        let mut served = self.accept().await;
        served.say(HELLO).await;
        self.client.changed().await.unwrap();
        served
    }

    fn begin(&self, within: Duration) -> tokio::task::JoinHandle<(Reply, Option<Exchange>)> {
        let client = self.client.clone();
        tokio::spawn(async move { client.begin(attempt(Mechanism::Plain), within).await })
    }
}

impl Served {
    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(5 * SECOND, self.lines.read_line(&mut line))
            .await
            .expect("a line")
            .unwrap();
        line.trim_end_matches('\n').to_owned()
    }

    async fn say(&mut self, text: &str) {
        self.lines
            .get_mut()
            .write_all(text.as_bytes())
            .await
            .unwrap();
    }
}

fn attempt(mechanism: Mechanism) -> Attempt {
    Attempt {
        mechanism,
        client: [192, 0, 2, 7].into(),
        is_secured: true,
        initial: Some(secret("\0alice\0sesame")),
    }
}

fn secret(text: &str) -> Secret {
    Secret::new(Zeroizing::new(text.as_bytes().to_vec()))
}

/// The number of a request.
fn number(line: &str) -> &str {
    line.split('\t').nth(1).unwrap()
}

#[tokio::test]
async fn answers_in_another_order_reach_who_asked() {
    let mut scene = Scene::new();
    let mut served = scene.ready().await;
    let first = scene.begin(5 * SECOND);
    let one = served.line().await;
    let second = scene.begin(5 * SECOND);
    let two = served.line().await;
    let answers = format!(
        "OK\t{}\tuser=bob\nFAIL\t{}\tuser=x\n",
        number(&two),
        number(&one)
    );
    served.say(&answers).await;
    assert!(matches!(first.await.unwrap().0, Reply::Refused(_)));
    assert_eq!(second.await.unwrap().0, Reply::Accepted("bob".to_owned()));
}

#[tokio::test]
async fn what_is_in_flight_when_the_connection_breaks_is_unavailable_and_the_next_one_serves() {
    let mut scene = Scene::new();
    let mut served = scene.ready().await;
    let lost = scene.begin(60 * SECOND);
    served.line().await;
    drop(served);
    let (reply, exchange) = timeout(5 * SECOND, lost).await.expect("at once").unwrap();
    assert_eq!(reply, Reply::Unavailable);
    assert!(exchange.is_none());
    // It is away: no mechanisms.
    scene.client.changed().await.unwrap();
    assert_eq!(scene.client.mechanisms(), []);
    let mut served = scene.ready().await;
    assert_eq!(
        scene.client.mechanisms(),
        [Mechanism::Plain, Mechanism::Login]
    );
    let again = scene.begin(5 * SECOND);
    let line = served.line().await;
    served
        .say(&format!("OK\t{}\tuser=alice\n", number(&line)))
        .await;
    assert_eq!(again.await.unwrap().0, Reply::Accepted("alice".to_owned()));
}

#[tokio::test]
async fn a_request_without_an_answer_is_cancelled_at_its_deadline_and_a_late_one_is_lost() {
    let mut scene = Scene::new();
    let mut served = scene.ready().await;
    let late = scene.begin(SECOND / 10);
    let line = served.line().await;
    assert_eq!(late.await.unwrap().0, Reply::Unavailable);
    assert_eq!(served.line().await, format!("CANCEL\t{}", number(&line)));
    let next = scene.begin(5 * SECOND);
    let other = served.line().await;
    assert_ne!(number(&line), number(&other));
    let answers = format!(
        "OK\t{}\tuser=late\nFAIL\t{}\n",
        number(&line),
        number(&other)
    );
    served.say(&answers).await;
    assert!(matches!(next.await.unwrap().0, Reply::Refused(_)));
}

#[tokio::test]
async fn an_exchange_goes_on_over_challenges_and_a_dropped_one_is_cancelled() {
    let mut scene = Scene::new();
    let mut served = scene.ready().await;
    let begun = scene.begin(5 * SECOND);
    let line = served.line().await;
    served
        .say(&format!("CONT\t{}\tUGFzc3dvcmQ6\n", number(&line)))
        .await;
    let (reply, exchange) = begun.await.unwrap();
    assert_eq!(reply, Reply::Continue(b"Password:".to_vec()));
    let mut exchange = exchange.unwrap();
    let proceeding = tokio::spawn(async move {
        let reply = exchange.proceed(secret("x"), 5 * SECOND).await;
        (reply, exchange)
    });
    assert_eq!(
        served.line().await,
        format!("CONT\t{}\teA==", number(&line))
    );
    served.say(&format!("CONT\t{}\t\n", number(&line))).await;
    let (reply, mut exchange) = proceeding.await.unwrap();
    assert_eq!(reply, Reply::Continue(Vec::new()));
    // Over 16 KiB would close the connection under all others.
    let long = exchange
        .proceed(secret(&"x".repeat(12_000)), 5 * SECOND)
        .await;
    assert!(matches!(long, Reply::Refused(_)));
    assert_eq!(served.line().await, format!("CANCEL\t{}", number(&line)));
    assert_eq!(
        exchange.proceed(secret("x"), SECOND).await,
        Reply::Unavailable
    );
}

#[tokio::test]
async fn a_mechanism_that_was_not_announced_is_not_asked_for() {
    let mut scene = Scene::new();
    let mut served = scene.ready().await;
    let scram = scene
        .client
        .begin(attempt(Mechanism::ScramSha256), 5 * SECOND)
        .await;
    assert_eq!(scram.0, Reply::Unavailable);
    let _begun = scene.begin(SECOND);
    assert!(served.line().await.contains("\tPLAIN\t"));
}

#[tokio::test]
async fn strange_servers_are_left_and_tried_again() {
    let mut scene = Scene::new();
    for hello in ["VERSION\t2\t0\n", "DONE\n", "OK\tx\n", "\n\u{7}\nMECH\n"] {
        let mut served = scene.accept().await;
        served.say(hello).await;
        let mut rest = String::new();
        let read = timeout(5 * SECOND, served.lines.read_line(&mut rest)).await;
        assert_eq!(read.expect("it leaves").unwrap_or(0), 0, "{hello:?}");
    }
    scene.ready().await;
}

#[tokio::test]
async fn without_a_server_everything_is_unavailable_at_once() {
    let (client, task) = client(PathBuf::from("/nonexistent/auth-client"));
    tokio::spawn(task);
    for _ in 0..3 {
        let begun = client.begin(attempt(Mechanism::Plain), 60 * SECOND);
        let (reply, _) = timeout(5 * SECOND, begun).await.expect("at once");
        assert_eq!(reply, Reply::Unavailable);
    }
}

#[tokio::test]
async fn one_exchange_too_many_is_unavailable_and_room_comes_back() {
    let mut scene = Scene::new();
    let mut served = scene.ready().await;
    let mut waiting: Vec<_> = (0..IN_FLIGHT_MAX)
        .map(|_| scene.begin(60 * SECOND))
        .collect();
    let mut numbers = Vec::new();
    for _ in 0..IN_FLIGHT_MAX {
        numbers.push(number(&served.line().await).to_owned());
    }
    assert_eq!(
        scene.begin(60 * SECOND).await.unwrap().0,
        Reply::Unavailable
    );
    served.say(&format!("FAIL\t{}\n", numbers[0])).await;
    waiting.remove(0).await.unwrap();
    let next = scene.begin(60 * SECOND);
    assert!(served.line().await.starts_with("AUTH\t"));
    next.abort();
}

#[tokio::test]
async fn the_connection_ends_with_the_last_handle() {
    let mut scene = Scene::new();
    let mut served = scene.ready().await;
    drop(scene.client);
    assert_eq!(served.line().await, "");
}
