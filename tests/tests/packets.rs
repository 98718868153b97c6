//! The packet cases of `tests/packets`, on the host and through the program in the kernel; and both against each other
//! with frames that nobody wrote.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process;

use anyhow::{Context as _, Result, ensure};
use portcullis::config::{self, FilterMode, Unlisted, XdpMode};
use portcullis::filter::{self, Filter, Trial};
use portcullis::lists::{Compiled, ListAction};
use portcullis_ebpf_common::layout::{Measures, Mode, Settings};
use portcullis_ebpf_common::{Action, Class, Lookup, Source, Verdict, judge};
use portcullis_tests::packet_cases::{self, Expected, File};
use portcullis_tests::root;

/// Userspace's own lookup in the place of the kernel's: the slot of a list is its place in the configuration.
struct Userspace<'a>(&'a Compiled);

impl Lookup for Userspace<'_> {
    fn class(&self, source: &Source) -> Class {
        let octets: Vec<u8> = source
            .0
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let address = match octets[..4] {
            [0, 0, 0, 4] => octets[4..]
                .first_chunk()
                .map(|octets: &[u8; 4]| IpAddr::from(*octets)),
            _ => octets[4..]
                .first_chunk()
                .map(|octets: &[u8; 16]| IpAddr::from(*octets)),
        };
        let listing = address.and_then(|address| self.0.filtered(address));
        listing.map_or(Class::NONE, |listing| {
            let action = match listing.action {
                ListAction::Permit => Action::Permit,
                ListAction::Drop | ListAction::Reject => Action::Drop,
            };
            Class::new(action, listing.list)
        })
    }
}

fn judge_on_host(file: &File, frame: &[u8]) -> Verdict {
    let settings = Settings::new(
        Mode::Enforce,
        Measures {
            drop_unlisted: file.drop_unlisted,
            ..Measures::default()
        },
        &file.ports,
    );
    judge(frame, &settings, &Userspace(&file.lists))
}

fn named(file: &File, verdict: Verdict) -> Expected {
    let list = |slot: u32| {
        let list = usize::try_from(slot)
            .ok()
            .and_then(|slot| file.lists.lists.get(slot));
        list.map(|list| list.name.clone()).unwrap_or_default()
    };
    match verdict {
        Verdict::Other => Expected::Other,
        Verdict::Passed => Expected::Pass,
        Verdict::Permitted(slot) => Expected::Permit(list(slot)),
        Verdict::Listed(slot) => Expected::Drop(list(slot)),
        Verdict::Unlisted => Expected::DropUnlisted,
    }
}

/// The filter with the file's lists, on no interface.
struct InKernel {
    filter: Filter,
    trial: Trial,
    pin_path: PathBuf,
}

impl InKernel {
    fn new(file: &File, name: &str, mode: FilterMode) -> Result<Self> {
        let stem = file.path.file_stem().unwrap_or_default().to_string_lossy();
        let pin_path = PathBuf::from(format!(
            "/sys/fs/bpf/portcullis-test-{}-{name}-{stem}",
            process::id()
        ));
        let settings = config::Filter {
            interfaces: Vec::new(),
            ports: file.ports.clone(),
            mode,
            unlisted: if file.drop_unlisted {
                Unlisted::Drop
            } else {
                Unlisted::Pass
            },
            xdp_mode: XdpMode::Driver,
            pin_path: pin_path.clone(),
        };
        let filter = Filter::attach(&settings, &file.lists)?;
        let trial = filter.trial()?;
        Ok(Self {
            filter,
            trial,
            pin_path,
        })
    }

    /// Packets that each list dropped, permitted and would have dropped.
    fn counted(&self) -> Result<Vec<(String, [u64; 3])>> {
        let lists = self.filter.status()?.lists.into_iter();
        let counters = lists.map(|list| {
            (
                list.name,
                [
                    list.dropped_packets,
                    list.permitted_packets,
                    list.monitored_packets,
                ],
            )
        });
        Ok(counters.collect())
    }
}

impl Drop for InKernel {
    fn drop(&mut self) {
        let _ = filter::detach(&self.pin_path, &[]);
    }
}

#[test]
fn the_verdict_on_the_host_is_the_one_written_down() -> Result<()> {
    let mut cases = 0;
    for file in packet_cases::all()? {
        for case in &file.cases {
            let verdict = named(&file, judge_on_host(&file, &case.frame));
            assert_eq!(
                verdict,
                case.expected,
                "{}: {}",
                file.path.display(),
                case.name
            );
            cases += 1;
        }
    }
    ensure!(cases >= 50, "only {cases} cases were found");
    Ok(())
}

#[test]
fn the_program_in_the_kernel_carries_out_the_verdict_and_counts_it_for_the_list() -> Result<()> {
    if !root() {
        return Ok(());
    }
    for file in packet_cases::all()? {
        let mut kernel = InKernel::new(&file, "cases", FilterMode::Enforce)?;
        for case in &file.cases {
            let what = || format!("{}: {}", file.path.display(), case.name);
            let before = kernel.counted()?;
            let outcome = kernel.trial.run(&case.frame, 1).with_context(what)?;
            let drops = matches!(case.expected, Expected::Drop(_) | Expected::DropUnlisted);
            assert_eq!(outcome.dropped, drops, "{}", what());
            let expected: Vec<_> = before
                .into_iter()
                .map(|(list, [dropped, permitted, monitored])| {
                    let drops = case.expected == Expected::Drop(list.clone());
                    let permits = case.expected == Expected::Permit(list.clone());
                    (
                        list,
                        [
                            dropped + u64::from(drops),
                            permitted + u64::from(permits),
                            monitored,
                        ],
                    )
                })
                .collect();
            assert_eq!(kernel.counted()?, expected, "{}", what());
        }
    }
    Ok(())
}

#[test]
fn monitoring_drops_no_packet_whatever_it_is() -> Result<()> {
    if !root() {
        return Ok(());
    }
    for file in packet_cases::all()? {
        let mut kernel = InKernel::new(&file, "monitor", FilterMode::Monitor)?;
        for case in &file.cases {
            assert!(!kernel.trial.run(&case.frame, 1)?.dropped, "{}", case.name);
        }
        let listed = file
            .cases
            .iter()
            .filter(|case| matches!(case.expected, Expected::Drop(_)));
        let monitored: u64 = kernel
            .counted()?
            .iter()
            .map(|(_, [_, _, monitored])| monitored)
            .sum();
        assert_eq!(monitored, listed.count() as u64, "each of them was counted");
    }
    Ok(())
}

#[test]
fn host_and_kernel_agree_on_frames_that_nobody_wrote() -> Result<()> {
    if !root() {
        return Ok(());
    }
    // The same frames in every run.
    let mut random = fastrand::Rng::with_seed(25);
    let mut drops = 0;
    for file in packet_cases::all()? {
        let mut kernel = InKernel::new(&file, "random", FilterMode::Enforce)?;
        for case in file.cases.iter().cycle().take(4000) {
            let mut frame = case.frame.clone();
            for _ in 0..random.usize(..4) {
                let at = random.usize(..frame.len());
                frame[at] = random.u8(..);
            }
            if random.usize(..4) == 0 {
                frame.truncate(14.max(random.usize(..frame.len())));
            }
            let on_host = judge_on_host(&file, &frame).drops(Mode::Enforce);
            assert_eq!(
                kernel.trial.run(&frame, 1)?.dropped,
                on_host,
                "{}: {frame:02x?}",
                case.name
            );
            drops += u64::from(on_host);
        }
    }
    assert!(
        drops > 1000,
        "only {drops} frames were dropped: the changes destroy too much to test anything"
    );
    Ok(())
}
