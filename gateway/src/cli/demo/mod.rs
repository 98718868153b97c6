//! `portcullis demo`: the whole gate at work on one machine. It needs no installation and no
//! configuration.
//!
//! As root it creates two namespaces, one for a gate and one for the Internet. It loads the XDP
//! program in driver mode, floods port 25 from listed addresses, sends honest mail at the same
//! time, tries to abuse the relay, and prints the figures. Every figure has an expected value; the
//! exit code says whether all match. Without root there are no namespaces and no program: the rest
//! runs on the loopback, and the demo says what it left out.
//!
//! The gate is this binary under `portcullis run`, so the demo shows what an operator would see.
//! The senders and the next hop are the demo's own, so the counts do not come from the gate alone.

mod abuse;
mod flood;
mod honest;
mod report;
mod scene;
mod sink;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::control::interrupt::Interrupt;
use portcullis::netns;

use self::flood::Sent;
use self::honest::Delivered;
use self::report::Report;
use self::scene::Scene;

/// Arguments of `portcullis demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo portcullis demo          everything: filter, flood, honest mail, abuse (a few seconds)
  portcullis demo               without root: no filter and no flood, the rest on the loopback
  sudo portcullis demo --json   the figures for a program

Exit code: 0 if every figure is what it must be, 1 if not.")]
pub(crate) struct Args {
    /// Honest messages to send while the flood runs
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    messages: u32,
    /// Packets of the flood, at most
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    packets: u64,
    /// Print the figures as JSON, and progress on the standard error only
    #[arg(long)]
    json: bool,
}

/// The demo, from its namespaces to its report.
pub(crate) fn run(args: &Args) -> ExitCode {
    match show(args) {
        Ok(report) => {
            let good = report.is_good();
            if args.json {
                report.print_json();
            } else {
                report.print_table();
            };
            if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            progress(&format!("the demo failed: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// A progress line, to the standard error, where it does not mix with the report.
fn progress(line: &str) {
    // A closed standard error is no reason to stop.
    let _ = writeln!(io::stderr(), "demo: {line}");
}

fn show(args: &Args) -> io::Result<Report> {
    let interrupt = Interrupt::watch()?;
    let begun = Instant::now();
    let scene = if netns::permitted() {
        let swept = netns::sweep()?;
        if swept > 0 {
            progress(&format!(
                "removed {swept} namespaces that a killed run had left"
            ));
        }
        progress("two namespaces, a gate in one and the world in the other");
        Scene::in_namespaces()?
    } else {
        progress(
            "not root: no namespaces, no XDP program and no flood; the rest runs on the loopback",
        );
        Scene::on_the_loopback()?
    };
    progress(&format!("the gate listens on {}", scene.address()));

    let (sent, delivered) = flood_and_mail(args, &scene, &interrupt)?;
    check_interrupt(&interrupt)?;
    progress("abuse: every form of asking for a relay that testers try");
    let abuse = abuse::attempt(&scene)?;
    check_interrupt(&interrupt)?;
    // The sink has answered everything that was sent: its counts are final.
    let arrived = scene.sink().arrived();
    let filter = scene.filter_status()?;
    let refused = scene.refused_by_rule()?;
    scene.take_down()?;
    progress(&format!(
        "cleaned up after {:.1} s",
        begun.elapsed().as_secs_f64()
    ));
    Ok(Report {
        messages: args.messages,
        sent,
        filter,
        delivered,
        arrived,
        abuse,
        refused,
    })
}

/// Sends honest mail, with the flood around it if there is one.
fn flood_and_mail(
    args: &Args,
    scene: &Scene,
    interrupt: &Interrupt,
) -> io::Result<(Option<Sent>, Delivered)> {
    let over = AtomicBool::new(false);
    let stop = || over.load(Ordering::Relaxed) || interrupt.requested();
    thread::scope(|scope| {
        let flood = scene.world().map(|world| {
            progress(&format!(
                "a flood from listed sources, at most {} packets",
                args.packets
            ));
            scope.spawn(move || {
                world
                    .run(|| flood::send(args.packets, scene.lists(), stop))
                    .flatten()
            })
        });
        progress(&format!(
            "{} honest messages over {} sessions meanwhile",
            args.messages,
            honest::SESSIONS
        ));
        let delivered = honest::send(scene, args.messages, interrupt);
        // The flood runs for a while even if there is little mail.
        if flood.is_some() {
            wait(Duration::from_secs(2), interrupt);
        }
        over.store(true, Ordering::Relaxed);
        let sent = flood.map(|flood| {
            flood
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        Ok((sent.transpose()?, delivered?))
    })
}

fn wait(time: Duration, interrupt: &Interrupt) {
    let end = Instant::now() + time;
    while Instant::now() < end && !interrupt.requested() {
        thread::sleep(Duration::from_millis(20));
    }
}

/// An interrupted demo has no figures. The error makes it clean up.
fn check_interrupt(interrupt: &Interrupt) -> io::Result<()> {
    if interrupt.requested() {
        return Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "interrupted; everything is cleaned up",
        ));
    }
    Ok(())
}
