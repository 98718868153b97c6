//! The output of `portcullis filter attach`: what it has done or, with `--dry-run`, would do.

use std::process::ExitCode;

use portcullis::config;
use portcullis::control::interfaces::PINS_ARE_PRIVATE;
use portcullis::filter::{self, Filter, Plan, PlannedInterface};

use super::failed;

/// Prints where the filter is attached, and where it was detached.
pub(super) fn print_result(filter: &Filter, settings: &config::Filter, to_detach: &[String]) {
    for interface in to_detach {
        println!("{interface}: the filter is taken off: the configuration does not name it");
    }
    let names = settings.interfaces.iter().map(|interface| &*interface.name);
    let missing = filter.missing();
    let (missing, there): (Vec<&str>, Vec<&str>) =
        names.partition(|name| missing.iter().any(|missing| missing == name));
    if !there.is_empty() {
        println!("the filter is in place on {}", there.join(", "));
    }
    if !missing.is_empty() {
        println!(
            "not there yet: {}; a running gate puts the filter there when it comes",
            missing.join(", ")
        );
    }
}

/// Prints what would be done. The exit code is that of the real command, as far as it is known.
pub(super) fn dry_run(settings: &config::Filter) -> Result<ExitCode, ExitCode> {
    let plan = filter::plan(settings).map_err(|error| failed(&error, None))?;
    for interface in &plan.interfaces {
        println!("{}", about(interface, settings));
    }
    for interface in &plan.to_detach {
        println!("{interface}: the filter would be taken off: the configuration does not name it");
    }
    for interface in &settings.interfaces {
        if let Some(fault) = filter::answer_fault(settings, interface) {
            println!("warning: {fault}");
        }
    }
    if plan.is_private {
        println!("warning: {PINS_ARE_PRIVATE}");
    }
    Ok(end(&plan, settings))
}

fn about(interface: &PlannedInterface, settings: &config::Filter) -> String {
    let name = &interface.name;
    let mode = match settings.xdp_mode {
        config::XdpMode::Driver => "driver",
        config::XdpMode::Generic => "generic",
    };
    match &interface.state {
        None => format!("{name}: not there; a running gate would wait for it"),
        Some(state) if state.is_ours => {
            let mut text = format!("{name}: the filter is there and would be taken over");
            for difference in &state.differences {
                text += &format!("; {difference}");
            }
            text
        }
        Some(_) => {
            let mut text = format!("{name}: the filter would be put there, in the {mode} mode");
            if would_fail(interface, settings) {
                text += ", which its driver does not have: that would fail \
                         (filter.xdp_mode = \"generic\" works)";
            }
            text
        }
    }
}

/// Whether its driver is known not to run XDP programs.
fn would_fail(interface: &PlannedInterface, settings: &config::Filter) -> bool {
    let wants_driver = settings.xdp_mode == config::XdpMode::Driver;
    let state = interface.state.as_ref();
    wants_driver && state.is_some_and(|state| !state.is_ours && state.driver_mode == Some(false))
}

fn end(plan: &Plan, settings: &config::Filter) -> ExitCode {
    let mut interfaces = plan.interfaces.iter();
    let would_fail = interfaces.any(|interface| would_fail(interface, settings));
    if let Some(holder) = &plan.holder {
        println!(
            "{holder} holds the filter of {}: nothing could be changed beside it; reload that \
             gate (SIGHUP) instead",
            plan.pin_path.display()
        );
    }
    println!("nothing was changed");
    if would_fail || plan.holder.is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
