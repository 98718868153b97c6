//! What a new configuration changes, in the words of its file; and what it cannot change while the
//! gate runs.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::{self, Admin, Config, Filter, Table};
use crate::lists::List;
use crate::policy;

/// The most changes that are logged: a generated configuration may differ in thousands of keys.
const TOLD_MAX: usize = 50;

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Changes {
    /// Keys of the configuration, lists, rules, interfaces; at most [`TOLD_MAX`] of them.
    pub(super) changed: Vec<String>,
    /// How many more there are.
    pub(super) more: usize,
    /// What cannot change while the gate runs, and keeps its value.
    pub(super) kept: Vec<&'static str>,
}

impl Changes {
    pub(super) fn new(mut changed: Vec<String>, kept: Vec<&'static str>) -> Self {
        let more = changed.len().saturating_sub(TOLD_MAX);
        changed.truncate(TOLD_MAX);
        Self {
            changed,
            more,
            kept,
        }
    }

    /// Logs them; `what` was done.
    pub(super) fn log(&self, what: &str) {
        for kept in &self.kept {
            tracing::warn!(
                "{kept} cannot change while the gate runs; the old value stays until a restart"
            );
        }
        if self.changed.is_empty() {
            let else_ = if self.kept.is_empty() { "" } else { " else" };
            tracing::info!("{what}; nothing{else_} has changed");
            return;
        }
        let mut changed = self.changed.join(", ");
        if self.more > 0 {
            changed += &format!(", and {} more", self.more);
        }
        tracing::info!(changed, "{what}");
    }
}

/// Puts the old values back into a new configuration where the running gate cannot follow it.
/// Returns the names of those keys, as in the file. `holds_filter`: whether the gate has put a
/// filter in place.
pub(super) fn keep_what_cannot_change(
    old: &Config,
    new: &mut Config,
    holds_filter: bool,
) -> Vec<&'static str> {
    let mut kept = Vec::new();
    let mut keep = |name, differs: bool| {
        if differs {
            kept.push(name);
        }
        differs
    };
    if keep("[[listener]]", new.listeners != old.listeners) {
        new.listeners.clone_from(&old.listeners);
    }
    // What the listeners have of TLS stays, so what they need for it does too.
    let lacks = |tls: &Option<config::Tls>, old: &config::Tls| match tls {
        Some(tls) => tls.client_authorities.is_none() && old.client_authorities.is_some(),
        None => true,
    };
    let old_tls = old.tls.as_ref();
    if keep("[tls]", old_tls.is_some_and(|tls| lacks(&new.tls, tls))) {
        new.tls.clone_from(&old.tls);
    }
    if keep("workers", new.workers != old.workers) {
        new.workers = old.workers;
    }
    if keep("user", new.user != old.user) {
        new.user.clone_from(&old.user);
    }
    keep_admin(&old.admin, &mut new.admin, &mut keep);
    if keep("[grants]", new.grants != old.grants) {
        new.grants.clone_from(&old.grants);
    }
    if keep("state_dir", new.state_dir != old.state_dir) {
        new.state_dir.clone_from(&old.state_dir);
    }
    if keep("log.format", new.log.format != old.log.format) {
        new.log.format = old.log.format;
    }
    kept.extend(keep_attachment(
        old.filter.as_ref(),
        &mut new.filter,
        holds_filter,
    ));
    kept
}

/// Sockets, users and the token are held since the start.
fn keep_admin(old: &Admin, new: &mut Admin, keep: &mut impl FnMut(&'static str, bool) -> bool) {
    keep("admin", new.address != old.address);
    keep("admin_socket", new.socket != old.socket);
    keep("admin_users", new.users != old.users);
    keep("admin_groups", new.groups != old.groups);
    keep("admin_token_file", new.token_file != old.token_file);
    new.clone_from(old);
}

/// Ports, mode and what becomes of the unlisted can change; whether and where the program sits
/// cannot.
fn keep_attachment(
    old: Option<&Filter>,
    new: &mut Option<Filter>,
    holds_filter: bool,
) -> Vec<&'static str> {
    let mut kept = Vec::new();
    match (old, new) {
        (Some(old), Some(new)) => {
            if new.mode != old.mode && !holds_filter {
                kept.push("filter.mode");
                new.mode = old.mode;
            }
            if new.interfaces != old.interfaces {
                kept.push("filter.interfaces");
                new.interfaces.clone_from(&old.interfaces);
            }
            if new.xdp_mode != old.xdp_mode {
                kept.push("filter.xdp_mode");
                new.xdp_mode = old.xdp_mode;
            }
            if new.pin_path != old.pin_path {
                kept.push("filter.pin_path");
                new.pin_path.clone_from(&old.pin_path);
            }
        }
        (None, None) => {}
        (old, new) => {
            kept.push("[filter]");
            *new = old.cloned();
        }
    }
    kept
}

/// What differs between the files of two configurations, in the lists that they name and in the
/// rules: `limits.sessions`, `route[2].next_hop`, `list drop (3 -> 5 entries)`, `rule drop-list:new
/// (new)`. Defaults count: a key that is removed has changed if its default differs. What was kept
/// is left out.
pub(super) fn differences(old: &Config, new: &Config, kept: &[&str]) -> Vec<String> {
    let (before, after) = (settings(&old.in_force), settings(&new.in_force));
    let mut differences: Vec<String> = Vec::new();
    for (key, value) in &after {
        if before.get(key) != Some(value) {
            differences.push(key.clone());
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        differences.push(format!("{key} (removed)"));
    }
    differences.retain(|key| !kept.iter().any(|kept| is_within(key, kept)));
    differences.extend(list_differences(old, new));
    differences.extend(policy::changes(&old.policy, &new.policy));
    differences
}

/// Whether a key is this one or beneath it: `listener[1].address` is within `[[listener]]`.
fn is_within(key: &str, kept: &str) -> bool {
    let rest = key.strip_prefix(kept.trim_matches(['[', ']']));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// What differs in the lists: `list drop (3 -> 5 entries)`, `list feed (new, 7 entries)`.
pub(super) fn list_differences(old: &Config, new: &Config) -> Vec<String> {
    let (old, new) = (old.policy.lists(), new.policy.lists());
    let mut differences = Vec::new();
    for List { name, entries, .. } in &new.lists {
        match old.lists.iter().find(|before| before.name == *name) {
            None => differences.push(format!("list {name} (new, {entries} entries)")),
            Some(List {
                entries: before, ..
            }) if before != entries => {
                differences.push(format!("list {name} ({before} -> {entries} entries)"));
            }
            Some(_) => {}
        }
    }
    for List { name, entries, .. } in &old.lists {
        if !new.lists.iter().any(|after| after.name == *name) {
            differences.push(format!("list {name} (removed, {entries} entries)"));
        }
    }
    let same = old.filtered.same_content(&new.filtered) && old.rejected.same_content(&new.rejected);
    if differences.is_empty() && !same {
        differences.push("the content of the lists".to_owned());
    }
    differences
}

/// Every setting by its full name; the tables of an array are counted from 1.
fn settings(tables: &[Table]) -> BTreeMap<String, &str> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut settings = BTreeMap::new();
    for table in tables {
        let name = table.header.trim_matches(['[', ']']);
        let prefix = if name.is_empty() {
            String::new()
        } else if table.header.starts_with("[[") {
            let count = counts.entry(name).or_default();
            *count += 1;
            format!("{name}[{count}].")
        } else {
            format!("{name}.")
        };
        for setting in &table.settings {
            settings.insert(format!("{prefix}{}", setting.key), setting.value.as_str());
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    const BASE: &str = r#"hostname = "mx.isp.example"
workers = 1
admin = "127.0.0.1:9925"
admin_socket = "/run/a"
state_dir = "/tmp"
[filter]
interfaces = [{ name = "eth0", role = "edge" }]
[[listener]]
address = "127.0.0.1:2525"
[[route]]
domains = ["*"]
next_hop = ["192.0.2.1:25"]
[log]
format = "json"
"#;

    fn with(text: &str) -> Config {
        config::parse(Path::new("test"), text).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn edited(from: &str, to: &str) -> Config {
        assert!(BASE.contains(from), "{from}");
        with(&BASE.replace(from, to))
    }

    #[test]
    fn what_cannot_change_is_named_and_keeps_its_value() {
        let old = with(BASE);
        let cases = [
            ("127.0.0.1:2525", "127.0.0.1:2526", "[[listener]]"),
            ("workers = 1", "workers = 2", "workers"),
            ("workers = 1", "workers = 1\nuser = \"nobody\"", "user"),
            ("127.0.0.1:9925", "127.0.0.1:9926", "admin"),
            ("[filter]", "[grants]\n[filter]", "[grants]"),
            ("\"/run/a\"", "\"/run/b\"", "admin_socket"),
            (
                "workers = 1",
                "workers = 1\nadmin_users = [\"a\"]",
                "admin_users",
            ),
            (
                "workers = 1",
                "workers = 1\nadmin_groups = [\"a\"]",
                "admin_groups",
            ),
            (
                "workers = 1",
                "workers = 1\nadmin_token_file = \"/a\"",
                "admin_token_file",
            ),
            ("\"/tmp\"", "\"/var\"", "state_dir"),
            ("\"json\"", "\"text\"", "log.format"),
            ("eth0", "eth1", "filter.interfaces"),
            ("\"edge\"", "\"customer\"", "filter.interfaces"),
            (
                "[[listener]]",
                "xdp_mode = \"generic\"\n[[listener]]",
                "filter.xdp_mode",
            ),
            (
                "[[listener]]",
                "pin_path = \"/sys/fs/bpf/x\"\n[[listener]]",
                "filter.pin_path",
            ),
            (
                "[filter]\ninterfaces = [{ name = \"eth0\", role = \"edge\" }]\n",
                "",
                "[filter]",
            ),
        ];
        for (from, to, name) in cases {
            let mut new = edited(from, to);
            let kept = keep_what_cannot_change(&old, &mut new, true);
            assert_eq!(kept, [name]);
            assert_eq!(
                differences(&old, &new, &kept),
                [""; 0],
                "{name} is told to have changed"
            );
            assert_eq!(
                keep_what_cannot_change(&old, &mut new, true),
                [""; 0],
                "{name} was not kept"
            );
        }
        // It is described so. What can change within [filter] is not.
        let names = || {
            cases
                .iter()
                .map(|case| case.2)
                .filter(|name| *name != "[filter]")
        };
        for key in config::reference::tables()
            .iter()
            .flat_map(|table| &table.keys)
        {
            let path = key.path();
            let cannot_change = names().any(|name| is_within(&path, name));
            assert_eq!(key.needs_restart, cannot_change, "{path}");
        }
    }

    #[test]
    fn a_filter_that_was_off_at_the_start_is_not_taken_for_one_that_drops() {
        let off = with(&BASE.replace("[filter]", "[filter]\nmode = \"off\""));
        let mut new = with(BASE);
        assert_eq!(
            keep_what_cannot_change(&off, &mut new, false),
            ["filter.mode"]
        );
        assert_eq!(new.filter, off.filter);
    }

    #[test]
    fn what_can_change_is_let_through() {
        let old = with(BASE);
        for (from, to) in [
            ("192.0.2.1", "192.0.2.2"),
            ("mx.isp", "mx2.isp"),
            (
                "[[listener]]",
                "mode = \"monitor\"\nports = [25, 26]\n[[listener]]",
            ),
            (
                "[[listener]]",
                "syn_budget = 9\nsyn_cookies = false\ncustomer_refusal = \
                 \"drop\"\nresets_per_second = 9\n[[listener]]",
            ),
            ("format = \"json\"", "format = \"json\"\nlevel = \"debug\""),
        ] {
            let mut new = edited(from, to);
            assert_eq!(
                keep_what_cannot_change(&old, &mut new, true),
                [""; 0],
                "{to}"
            );
        }
    }

    #[test]
    fn changes_are_named_as_in_the_file() {
        let old = with(BASE);
        assert_eq!(differences(&old, &with(BASE), &[]), [""; 0]);
        let cases = [
            ("192.0.2.1", "192.0.2.2", "route[1].next_hop"),
            ("mx.isp", "mx2.isp", "hostname"),
            ("[log]", "[limits]\nsessions = 9\n[log]", "limits.sessions"),
        ];
        for (from, to, name) in cases {
            assert_eq!(differences(&old, &edited(from, to), &[]), [name]);
        }
        let more =
            format!("{BASE}[[route]]\ndomains = [\"b.example\"]\nnext_hop = [\"discard\"]\n");
        let added = differences(&old, &with(&more), &[]);
        assert!(added.contains(&"route[2].next_hop".to_owned()), "{added:?}");
        let removed = differences(&with(&more), &old, &[]);
        assert!(
            removed.contains(&"route[2].next_hop (removed)".to_owned()),
            "{removed:?}"
        );
    }

    #[test]
    fn lists_and_rules_that_come_and_go_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let with_lists = |names: &[&str]| {
            let mut text = BASE.to_owned();
            for name in names {
                let file = directory.path().join(name);
                std::fs::write(&file, "192.0.2.1\n192.0.2.9\n").unwrap();
                text += &format!(
                    "[[list]]\nname = \"{name}\"\naction = \"drop\"\nfile = \"{}\"\n",
                    file.display()
                );
            }
            with(&text)
        };
        let (old, new) = (
            with_lists(&["gone", "stays"]),
            with_lists(&["stays", "came"]),
        );
        assert_eq!(
            list_differences(&old, &new),
            [
                "list came (new, 2 entries)",
                "list gone (removed, 2 entries)"
            ]
        );
        let told = differences(&old, &new, &[]);
        for rule in ["rule drop-list:came (new)", "rule drop-list:gone (removed)"] {
            assert!(told.iter().any(|line| line == rule), "{told:?}");
        }
        assert!(
            !told.iter().any(|line| line.contains("drop-list:stays")),
            "{told:?}"
        );
    }

    #[test]
    fn a_thousand_changes_are_told_by_the_first_of_them_and_their_number() {
        let changed: Vec<String> = (0..1_000).map(|number| format!("key-{number}")).collect();
        let changes = Changes::new(changed, Vec::new());
        assert_eq!(
            (changes.changed.len(), changes.more),
            (TOLD_MAX, 1_000 - TOLD_MAX)
        );
        assert_eq!(Changes::new(vec!["one".to_owned()], Vec::new()).more, 0);
    }

    #[test]
    fn another_content_of_a_list_is_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("drop.netset");
        let text = format!(
            "{BASE}[[list]]\nname = \"drop\"\naction = \"drop\"\nfile = \"{}\"\n",
            file.display()
        );
        let with_list = |content: &str| {
            std::fs::write(&file, content).unwrap();
            with(&text)
        };
        let old = with_list("192.0.2.1\n");
        assert_eq!(
            differences(&old, &with_list("192.0.2.1\n192.0.2.9\n"), &[]),
            ["list drop (1 -> 2 entries)"]
        );
        assert_eq!(
            differences(&old, &with_list("192.0.2.3\n"), &[]),
            ["the content of the lists"]
        );
    }
}
