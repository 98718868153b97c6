//! The client of Dovecot's auth socket against a real Dovecot: what it really says, and when.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis::auth::dovecot::{Attempt, Secret};
use portcullis::auth::exchange::Mechanism;
use portcullis::control::auth::dovecot::{Client, Exchange, Reply, client};
use portcullis_tests::dovecot::Dovecot;
use portcullis_tests::root;
use rsasl::config::SASLConfig;
use rsasl::mechanisms::scram::SCRAM_SHA256;
use rsasl::prelude::{Mechname, Registry, SASLClient};
use zeroize::Zeroizing;

const USERS: &[(&str, &str)] = &[("alice", "wonderland"), ("bob@isp.example", "builder")];
const LIMIT: Duration = Duration::from_secs(20);

fn secret(octets: &[u8]) -> Secret {
    Secret::new(Zeroizing::new(octets.to_vec()))
}

/// Runs a test with a Dovecot and a client that is connected.
fn with_dovecot<F>(test: impl FnOnce(Dovecot, Client) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    if !root() {
        return Ok(());
    }
    let dovecot = Dovecot::start(USERS)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (mut client, task) = client(dovecot.socket());
        tokio::spawn(task);
        connected(&mut client, true).await?;
        test(dovecot, client).await
    })
}

async fn connected(client: &mut Client, is_wanted: bool) -> Result<()> {
    let waited = tokio::time::timeout(LIMIT, async {
        while client.mechanisms().is_empty() == is_wanted {
            client.changed().await?;
        }
        anyhow::Ok(())
    });
    waited
        .await
        .context("it connects, or notices that it is not")?
}

async fn begin(
    client: &Client,
    mechanism: Mechanism,
    initial: Option<&[u8]>,
) -> (Reply, Option<Exchange>) {
    let attempt = Attempt {
        mechanism,
        client: [192, 0, 2, 7].into(),
        is_secured: true,
        initial: initial.map(secret),
    };
    client.begin(attempt, LIMIT).await
}

async fn plain(client: &Client, text: &str) -> Reply {
    begin(client, Mechanism::Plain, Some(text.as_bytes()))
        .await
        .0
}

fn accepted(name: &str) -> Reply {
    Reply::Accepted(name.to_owned())
}

fn is_refused(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(_))
}

#[test]
fn a_dovecot_says_who_a_client_is_by_plain() -> Result<()> {
    with_dovecot(async |_, client| {
        ensure!(client.mechanisms().len() == 3, "{:?}", client.mechanisms());
        ensure!(plain(&client, "\0alice\0wonderland").await == accepted("alice"));
        let reply = plain(&client, "\0Bob@ISP.example\0builder").await;
        ensure!(reply == accepted("bob@isp.example"), "{reply:?}");
        for wrong in ["\0alice\0Wonderland", "\0carol\0x", "alice", ""] {
            let reply = plain(&client, wrong).await;
            ensure!(is_refused(&reply), "{wrong:?}: {reply:?}");
        }
        let (reply, exchange) = begin(&client, Mechanism::Plain, None).await;
        ensure!(reply == Reply::Continue(Vec::new()), "{reply:?}");
        let mut exchange = exchange.context("it goes on")?;
        let reply = exchange
            .proceed(secret(b"\0alice\0wonderland"), LIMIT)
            .await;
        ensure!(reply == accepted("alice"), "{reply:?}");
        Ok(())
    })
}

#[test]
fn login_and_scram_go_over_challenges_both_ways() -> Result<()> {
    with_dovecot(async |_, client| {
        let (reply, exchange) = begin(&client, Mechanism::Login, None).await;
        ensure!(reply == Reply::Continue(b"Username:".to_vec()), "{reply:?}");
        let mut exchange = exchange.context("it goes on")?;
        let reply = exchange.proceed(secret(b"alice"), LIMIT).await;
        ensure!(reply == Reply::Continue(b"Password:".to_vec()), "{reply:?}");
        let reply = exchange.proceed(secret(b"wonderland"), LIMIT).await;
        ensure!(reply == accepted("alice"), "{reply:?}");
        ensure!(scram(&client, "alice", "wonderland").await? == accepted("alice"));
        // The name is told, so that guesses can be counted by user.
        let refused = |name: &str| Reply::Refused(Some(name.to_owned()));
        ensure!(scram(&client, "alice", "Wonderland").await? == refused("alice"));
        ensure!(scram(&client, "carol", "wonderland").await? == refused("carol"));
        Ok(())
    })
}

/// Runs SCRAM with rsasl's client, to its end.
async fn scram(to: &Client, name: &str, password: &str) -> Result<Reply> {
    let config = SASLConfig::builder()
        .with_registry(Registry::with_mechanisms(std::slice::from_ref(
            &SCRAM_SHA256,
        )))
        .with_callback(Credentials(name.to_owned(), password.to_owned()))?;
    let mechanism = Mechname::parse(b"SCRAM-SHA-256")?;
    let mut client = SASLClient::new(config).start_suggested(&[mechanism])?;
    let mut response = Vec::new();
    client.step(None, &mut response)?;
    let (mut reply, mut exchange) = begin(to, Mechanism::ScramSha256, Some(&response)).await;
    while let Reply::Continue(challenge) = &reply {
        let mut response = Vec::new();
        client.step(Some(challenge), &mut response)?;
        let exchange = exchange.as_mut().context("it goes on")?;
        reply = exchange.proceed(secret(&response), LIMIT).await;
    }
    Ok(reply)
}

struct Credentials(String, String);

impl rsasl::callback::SessionCallback for Credentials {
    fn callback(
        &self,
        _: &rsasl::callback::SessionData,
        _: &rsasl::callback::Context<'_>,
        request: &mut rsasl::callback::Request<'_>,
    ) -> Result<(), rsasl::prelude::SessionError> {
        request
            .satisfy::<rsasl::property::AuthId>(&self.0)?
            .satisfy::<rsasl::property::Password>(self.1.as_bytes())?;
        Ok(())
    }
}

#[test]
fn the_longest_response_of_smtp_and_a_flood_of_guesses_leave_the_connection_whole() -> Result<()> {
    with_dovecot(async |dovecot, client| {
        // 12,288 octets in base64; one that is over what Dovecot takes is not sent.
        for length in [9_216, 12_000, 40_000] {
            let long = format!("\0alice\0{}", "x".repeat(length - 7));
            ensure!(is_refused(&plain(&client, &long).await));
        }
        let guesses: Vec<_> = (0..100)
            .map(|number| {
                let client = client.clone();
                tokio::spawn(async move { plain(&client, &format!("\0alice\0{number}")).await })
            })
            .collect();
        // A right one does not wait for the wrong ones, which are held back.
        let begun = Instant::now();
        ensure!(plain(&client, "\0bob@isp.example\0builder").await == accepted("bob@isp.example"));
        ensure!(
            begun.elapsed() < Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
        for guess in guesses {
            ensure!(is_refused(&guess.await?));
        }
        let log = dovecot.log();
        ensure!(!log.contains("Error"), "{log}");
        Ok(())
    })
}

#[test]
fn a_dovecot_that_is_stopped_is_unavailable_and_serves_again_when_it_is_back() -> Result<()> {
    with_dovecot(async |mut dovecot, mut client| {
        let (reply, exchange) = begin(&client, Mechanism::Login, None).await;
        ensure!(matches!(reply, Reply::Continue(_)), "{reply:?}");
        let mut exchange = exchange.context("it goes on")?;
        dovecot.stop();
        connected(&mut client, false).await?;
        let reply = exchange.proceed(secret(b"alice"), LIMIT).await;
        ensure!(reply == Reply::Unavailable, "{reply:?}");
        ensure!(plain(&client, "\0alice\0wonderland").await == Reply::Unavailable);
        dovecot.run()?;
        connected(&mut client, true).await?;
        ensure!(plain(&client, "\0alice\0wonderland").await == accepted("alice"));
        Ok(())
    })
}
