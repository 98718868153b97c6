//! Recent verdicts: who is kept out by one, for how long, and who never is.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use portcullis::filter::{self, Cause, Exemption, Given, NewVerdict, Verdicts};
use portcullis_ebpf_common::layout::VERDICTS_MAX;
use portcullis_tests::root;

use crate::scene::{HONEST4, HONEST6, LISTED4, PERMITTED4, Scene, knock, lists};

const HOUR: Duration = Duration::from_secs(3_600);

fn verdict(address: &str, duration: Duration) -> anyhow::Result<NewVerdict<'static>> {
    Ok(NewVerdict {
        address: address.parse()?,
        duration,
        cause: Cause::Dnsbl,
        note: "bl.example",
    })
}

#[test]
fn a_verdict_keeps_a_source_out_until_it_is_taken_back() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let filter = scene.attach(&scene.settings())?;
    let verdicts = filter.verdicts();
    for (source, is_out) in [(HONEST4, "192.0.2.10"), (HONEST6, "2001:db8::/64")] {
        assert!(scene.reaches(source, 25));
        let new = verdict(source, HOUR)?;
        assert_eq!(verdicts.add(&new, Some(&lists()))?, Given::Added);
        assert_eq!(verdicts.add(&new, Some(&lists()))?, Given::Renewed);
        assert!(!scene.reaches(source, 25), "{source} has a verdict");
        assert!(scene.reaches(source, 587), "port 587 is not filtered");
        let in_force = verdicts.list()?;
        assert_eq!(in_force.len(), 1, "{in_force:?}");
        let listed = &in_force[0];
        assert_eq!((listed.source.as_str(), listed.packets), (is_out, 1));
        assert_eq!((listed.cause, &*listed.note), (Cause::Dnsbl, "bl.example"));
        assert!(listed.last_packet_seconds_ago.is_some());
        assert!((3_590..=3_600).contains(&listed.expires_in_seconds));
        assert!(verdicts.remove(source.parse()?)?);
        assert!(!verdicts.remove(source.parse()?)?, "it is gone");
        assert!(scene.reaches(source, 25), "{source} is let in again");
    }
    let status = scene.status();
    assert_eq!(status.interfaces[0].dropped.verdict, 2);
    let counts = status.verdicts;
    assert_eq!(
        (counts.number, counts.added, counts.renewed, counts.removed),
        (0, 2, 2, 2)
    );
    Ok(())
}

#[test]
fn a_verdict_ends_with_its_time() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let filter = scene.attach(&scene.settings())?;
    let verdicts = filter.verdicts();
    verdicts.add(&verdict(HONEST4, Duration::from_secs(1))?, None)?;
    assert!(!scene.reaches(HONEST4, 25));
    thread::sleep(Duration::from_millis(900));
    assert!(scene.reaches(HONEST4, 25));
    assert!(verdicts.list()?.is_empty(), "what is over is not in force");
    assert_eq!(verdicts.counts()?.number, 0);
    assert_eq!((verdicts.sweep()?, verdicts.sweep()?), (1, 0));
    assert_eq!(verdicts.counts()?.expired, 1);
    Ok(())
}

#[test]
fn a_session_that_is_open_may_end_in_order_while_new_ones_are_refused() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let filter = scene.attach(&scene.settings())?;
    let mut client = scene.outside.run(|| knock(HONEST4, 25))??;
    filter.verdicts().add(&verdict(HONEST4, HOUR)?, None)?;
    let mut gate = scene.accept()?;
    gate.write_all(b"554 5.7.1 listed\r\n")?;
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reply = [0; 18];
    client.read_exact(&mut reply)?;
    client.write_all(b"QUIT\r\n")?;
    gate.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut quit = [0; 6];
    gate.read_exact(&mut quit)?;
    assert_eq!(&quit, b"QUIT\r\n");
    assert!(!scene.reaches(HONEST4, 25));
    Ok(())
}

#[test]
fn permitted_and_local_sources_are_never_kept_out_by_a_verdict() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut filter = scene.attach(&scene.settings())?;
    let verdicts = filter.verdicts();
    let permitted = Given::Refused(Exemption::Permitted {
        list: "friends".to_owned(),
    });
    let friend = verdict(PERMITTED4, HOUR)?;
    assert_eq!(verdicts.add(&friend, Some(&lists()))?, permitted);
    // Who does not know the lists can give one; the program knows them.
    assert_eq!(verdicts.add(&friend, None)?, Given::Added);
    assert!(scene.reaches(PERMITTED4, 25));

    let (honest4, honest6) = (verdict(HONEST4, HOUR)?, verdict(HONEST6, HOUR)?);
    assert_eq!(verdicts.add(&honest4, None)?, Given::Added);
    assert_eq!(verdicts.add(&honest6, None)?, Given::Added);
    assert!(!scene.reaches(HONEST4, 25) && !scene.reaches(HONEST6, 25));
    let mut settings = scene.settings();
    settings.local_networks = vec!["192.0.2.0/26".parse()?, "2001:db8::/32".parse()?];
    filter.update_settings(&settings)?;
    assert_eq!(verdicts.list()?.len(), 3);
    assert!(
        scene.reaches(HONEST4, 25) && scene.reaches(HONEST6, 25),
        "a verdict from before means nothing to a local network"
    );
    filter.update_lists(&lists())?;
    assert!(verdicts.list()?.is_empty(), "and goes with the next reload");
    for new in [&honest4, &honest6] {
        assert_eq!(verdicts.add(new, None)?, Given::Refused(Exemption::Local));
        // So does the command line, without the configuration.
        let beside = Verdicts::open(&scene.pin_path)?;
        assert_eq!(beside.add(new, None)?, Given::Refused(Exemption::Local));
    }

    settings.local_networks = vec!["198.51.100.0/24".parse()?];
    filter.update_settings(&settings)?;
    assert_eq!(verdicts.add(&honest4, None)?, Given::Added);
    assert!(!scene.reaches(HONEST4, 25), "it is local no more");
    assert_eq!(verdicts.counts()?.refused, 5);
    Ok(())
}

#[test]
fn when_there_is_no_room_the_verdicts_of_least_use_go() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let filter = scene.attach(&scene.settings())?;
    let verdicts = filter.verdicts();
    let of_number = |number: u32| NewVerdict {
        address: Ipv4Addr::from(0x0a00_0000 + number).into(),
        duration: HOUR,
        cause: Cause::Operator,
        note: "",
    };
    verdicts.add(&verdict(HONEST4, HOUR)?, None)?;
    for number in 1..VERDICTS_MAX {
        verdicts.add(&of_number(number), None)?;
    }
    assert_eq!(verdicts.counts()?.number, u64::from(VERDICTS_MAX));
    assert!(!scene.reaches(HONEST4, 25), "it has just been of use");
    for number in VERDICTS_MAX..VERDICTS_MAX + 1_000 {
        assert_eq!(verdicts.add(&of_number(number), None)?, Given::Added);
    }
    let counts = verdicts.counts()?;
    assert_eq!(counts.evicted, u64::from(VERDICTS_MAX / 16));
    assert_eq!(
        counts.number + counts.evicted,
        u64::from(VERDICTS_MAX) + 1_000
    );
    assert!(!scene.reaches(HONEST4, 25), "the oldest, and not the least");
    let has = |number: u32| -> anyhow::Result<bool> {
        let address: IpAddr = of_number(number).address;
        Ok(verdicts.remove(address)?)
    };
    assert!(!has(1)? && has(VERDICTS_MAX - 1)? && has(VERDICTS_MAX + 999)?);
    assert_eq!(verdicts.flush()?, counts.number - 2);
    assert!(scene.reaches(HONEST4, 25));
    Ok(())
}

#[test]
fn verdicts_outlive_their_owner_and_can_be_changed_without_one() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    assert!(matches!(
        Verdicts::open(&scene.pin_path),
        Err(filter::Error::NotAttached { .. })
    ));
    let owner = scene.attach(&scene.settings())?;
    owner.verdicts().add(&verdict(HONEST4, HOUR)?, None)?;
    drop(owner);
    let verdicts = Verdicts::open(&scene.pin_path)?;
    assert_eq!(verdicts.list()?.len(), 1);
    let _next = scene.attach(&scene.settings())?;
    assert!(!scene.reaches(HONEST4, 25) && !scene.reaches(LISTED4, 25));
    assert!(verdicts.remove(HONEST4.parse()?)?);
    assert!(scene.reaches(HONEST4, 25));
    Ok(())
}
