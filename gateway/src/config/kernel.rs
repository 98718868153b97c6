//! `[filter]` in the terms of the program in the kernel: what lies in its maps, and what `explain`
//! judges a packet by.

use portcullis_ebpf_common::layout;

use super::{CustomerRefusal, Filter, FilterMode, Role, Unlisted};

impl Filter {
    /// The settings as they lie in the map, for interfaces on which everything is answered.
    pub fn in_kernel(&self) -> layout::Settings {
        let mode = match self.mode {
            FilterMode::Enforce => layout::Mode::Enforce,
            FilterMode::Monitor => layout::Mode::Monitor,
            FilterMode::Off => layout::Mode::Off,
        };
        let measures = layout::Measures {
            drop_unlisted: self.unlisted == Unlisted::Drop,
            syn_cookies: self.syn_cookies,
            customer_resets: self.customer_refusal == CustomerRefusal::Reset,
        };
        let mut in_kernel = layout::Settings::new(mode, measures, &self.ports);
        in_kernel.syn_budget = self.syn_budget;
        in_kernel.resets_per_second = self.resets_per_second;
        in_kernel
    }
}

impl Role {
    /// The role as the program has it.
    pub const fn in_kernel(self) -> layout::Role {
        match self {
            Self::Edge => layout::Role::Edge,
            Self::Customer => layout::Role::Customer,
        }
    }
}
