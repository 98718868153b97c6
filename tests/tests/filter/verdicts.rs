//! Recent verdicts: which sources they drop, for how long, and which never.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use portcullis::filter::{self, AddResult, Cause, Exemption, NewVerdict, Verdicts};
use portcullis::lists::{Compiled, ListAction};
use portcullis_ebpf_common::layout::VERDICTS_MAX;
use portcullis_tests::root;

use crate::scene::{HONEST4, HONEST6, LISTED4, PERMITTED4, Scene, knock, lists};

const HOUR: Duration = Duration::from_secs(3_600);

fn verdict(address: &str, duration: Duration) -> anyhow::Result<NewVerdict<'static>> {
    Ok(NewVerdict {
        source: address.parse::<IpAddr>()?.into(),
        duration,
        cause: Cause::Dnsbl,
        note: "bl.example",
    })
}

#[test]
fn a_verdict_drops_a_source_until_it_is_removed() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let filter = scene.attach(&scene.settings())?;
    let verdicts = filter.verdicts();
    for (source, is_out) in [(HONEST4, "192.0.2.10"), (HONEST6, "2001:db8::/64")] {
        assert!(scene.reaches(source, 25));
        let new = verdict(source, HOUR)?;
        assert_eq!(verdicts.add(&new, Some(&lists()))?, AddResult::Added);
        assert_eq!(verdicts.add(&new, Some(&lists()))?, AddResult::Renewed);
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
    let permitted = AddResult::Refused(Exemption::Permitted {
        list: "friends".to_owned(),
        network: "192.0.2.67/32".parse()?,
    });
    let friend = verdict(PERMITTED4, HOUR)?;
    assert_eq!(verdicts.add(&friend, Some(&lists()))?, permitted);
    // A caller without the lists can add one; the program knows the lists.
    assert_eq!(verdicts.add(&friend, None)?, AddResult::Added);
    assert!(scene.reaches(PERMITTED4, 25));
    // The command line has only the lists in force.
    let beside = Verdicts::open(&scene.pin_path)?;
    assert_eq!(beside.add(&friend, None)?, permitted);

    let (honest4, honest6) = (verdict(HONEST4, HOUR)?, verdict(HONEST6, HOUR)?);
    assert_eq!(verdicts.add(&honest4, None)?, AddResult::Added);
    assert_eq!(verdicts.add(&honest6, None)?, AddResult::Added);
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
    for (new, network) in [(&honest4, "192.0.2.0/26"), (&honest6, "2001:db8::/32")] {
        let network = network.parse()?;
        let local = AddResult::Refused(Exemption::Local { network });
        assert_eq!(verdicts.add(new, None)?, local);
        assert_eq!(beside.add(new, None)?, local);
    }

    settings.local_networks = vec!["198.51.100.0/24".parse()?];
    filter.update_settings(&settings)?;
    assert_eq!(verdicts.add(&honest4, None)?, AddResult::Added);
    assert!(!scene.reaches(HONEST4, 25), "it is local no more");
    assert_eq!(verdicts.counts()?.refused, 6);
    Ok(())
}

/// A verdict of a few words on one of many sources.
fn of_number(number: u32, cause: Cause) -> NewVerdict<'static> {
    let address: IpAddr = Ipv4Addr::from(0x0a00_0000 + number).into();
    NewVerdict {
        source: address.into(),
        duration: HOUR,
        cause,
        note: "",
    }
}

#[test]
fn when_there_is_no_room_the_learned_verdicts_of_least_use_go_and_never_those_of_people()
-> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let filter = scene.attach(&scene.settings())?;
    let verdicts = filter.verdicts();
    let learned = |number| of_number(number, Cause::Dnsbl);
    let by_hand = |number| of_number(number, Cause::Operator);
    // How many are evicted at once when there is no room.
    let batch = VERDICTS_MAX / 16;
    // The oldest, and without a packet: of the least use.
    assert_eq!(verdicts.add(&by_hand(0), None)?, AddResult::Added);
    verdicts.add(&verdict(HONEST4, HOUR)?, None)?;
    for number in 2..batch + 2 {
        verdicts.add(&learned(number), None)?;
    }
    for number in batch + 2..VERDICTS_MAX {
        verdicts.add(&by_hand(number), None)?;
    }
    let counts = verdicts.counts()?;
    assert_eq!((counts.number, counts.evicted), (VERDICTS_MAX.into(), 0));
    let by_operator = u64::from(VERDICTS_MAX - batch - 1);
    assert_eq!(
        (counts.by_operator, counts.capacity),
        (by_operator, 262_144)
    );
    assert!(!scene.reaches(HONEST4, 25), "it has just been of use");
    for number in VERDICTS_MAX..VERDICTS_MAX + 1_000 {
        assert_eq!(verdicts.add(&learned(number), None)?, AddResult::Added);
    }
    let counts = verdicts.counts()?;
    assert_eq!(
        (counts.evicted, verdicts.evicted()?),
        (batch.into(), batch.into())
    );
    assert_eq!(counts.by_operator, by_operator, "those of people have gone");
    assert!(!scene.reaches(HONEST4, 25), "old, and not of the least use");
    let has = |number: u32| verdicts.remove(learned(number).source.addr());
    assert!(!has(2)? && !has(batch + 1)? && has(VERDICTS_MAX + 999)?);

    // Verdicts of operators fill the map.
    for number in 1..batch + 2 {
        assert_eq!(verdicts.add(&by_hand(number), None)?, AddResult::Added);
    }
    assert_eq!(verdicts.counts()?.by_operator, u64::from(VERDICTS_MAX));
    let one_more = VERDICTS_MAX + 7;
    assert_eq!(verdicts.add(&learned(one_more), None)?, AddResult::NoRoom);
    assert_eq!(verdicts.add(&by_hand(one_more), None)?, AddResult::NoRoom);
    assert_eq!(verdicts.add(&by_hand(7), None)?, AddResult::Renewed);
    assert_eq!(verdicts.counts()?.no_room, 2);
    assert!(has(7)?);
    assert_eq!(verdicts.add(&by_hand(one_more), None)?, AddResult::Added);
    assert_eq!(verdicts.flush()?, u64::from(VERDICTS_MAX));
    assert!(scene.reaches(HONEST4, 25));
    Ok(())
}

#[test]
fn what_was_learned_neither_shortens_nor_renames_what_a_person_added() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let filter = scene.attach(&scene.settings())?;
    let verdicts = filter.verdicts();
    let by_hand = NewVerdict {
        cause: Cause::Operator,
        note: "ticket 4711",
        ..verdict(HONEST4, 24 * HOUR)?
    };
    let learned = verdict(HONEST4, HOUR)?;
    assert_eq!(verdicts.add(&learned, None)?, AddResult::Added);
    assert_eq!(verdicts.add(&by_hand, None)?, AddResult::Renewed);
    assert_eq!(verdicts.add(&learned, None)?, AddResult::Kept);
    let list = verdicts.list()?;
    assert_eq!(
        (list[0].cause, &*list[0].note),
        (Cause::Operator, "ticket 4711")
    );
    assert!(list[0].expires_in_seconds > 23 * 3_600, "{list:?}");
    Ok(())
}

#[test]
fn a_part_of_a_64_that_is_local_or_permitted_stays_in_and_is_named() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut filter = scene.attach(&scene.settings())?;
    let elsewhere = "2001:db8::9:0:0:1";
    let add = |source: &str| -> anyhow::Result<AddResult> {
        let new = NewVerdict {
            source: source.parse::<IpNet>()?,
            ..verdict(elsewhere, HOUR)?
        };
        Ok(Verdicts::open(&scene.pin_path)?.add(&new, None)?)
    };
    let all = "2001:db8::/64";
    let mut settings = scene.settings();
    // HONEST6 is in it.
    let network: IpNet = "2001:db8::/80".parse()?;
    settings.local_networks = vec![network];
    filter.update_settings(&settings)?;
    let local = Exemption::Local { network };
    assert_eq!(
        add(&format!("{HONEST6}/128"))?,
        AddResult::Refused(local.clone())
    );
    assert_eq!(add(&format!("{elsewhere}/128"))?, AddResult::Added);
    assert_eq!(add(all)?, AddResult::Renewed, "its first address is local");
    assert!(scene.reaches(HONEST6, 25), "the program looks at addresses");
    let verdicts = Verdicts::open(&scene.pin_path)?;
    let except = vec![local];
    assert_eq!(verdicts.list()?[0].except, except);
    assert_eq!(verdicts.exceptions(elsewhere.parse()?, None)?, except);

    // The whole /64: the part does not matter.
    settings.local_networks.push("2001:db8::/48".parse()?);
    filter.update_settings(&settings)?;
    assert!(matches!(
        add(all)?,
        AddResult::Refused(Exemption::Local { network }) if network.prefix_len() == 48
    ));

    settings.local_networks.clear();
    filter.update_settings(&settings)?;
    let network = format!("{HONEST6}/128").parse()?;
    let permits = |more: &[&str]| -> anyhow::Result<Compiled> {
        let nets = more.iter().map(|net| net.parse());
        let nets = nets.chain([Ok(network)]).collect::<Result<_, _>>()?;
        let permit = ("hosts".to_owned(), ListAction::Permit, nets);
        let drop = (
            "drop".to_owned(),
            ListAction::Drop,
            vec!["2001:db8:5::/48".parse()?],
        );
        Ok(Compiled::new([drop, permit]))
    };
    filter.update_lists(&permits(&[])?)?;
    let hosts = Exemption::Permitted {
        list: "hosts".to_owned(),
        network,
    };
    assert_eq!(add(all)?, AddResult::Renewed);
    assert_eq!(
        add(&format!("{HONEST6}/128"))?,
        AddResult::Refused(hosts.clone())
    );
    let list = Verdicts::open(&scene.pin_path)?.list()?;
    assert_eq!((list.len(), &list[0].except), (1, &vec![hosts]));
    assert!(scene.reaches(HONEST6, 25));
    filter.update_lists(&permits(&["2001:db8::/56", "2001:db8::/90"])?)?;
    assert!(
        filter.verdicts().list()?.is_empty(),
        "all of it is permitted, whatever is listed of its parts"
    );
    assert!(matches!(
        add(all)?,
        AddResult::Refused(Exemption::Permitted { network, .. }) if network.prefix_len() == 56
    ));
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
