//! Compares everything of two BPF objects that reaches the kernel: instructions, relocations, maps,
//! constants, licence, and the BTF that describes them. Debug information is neither compared nor
//! committed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::{SHF_ALLOC, SHT_STRTAB};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionFlags, SectionKind,
};

/// Bytes of a BPF instruction.
const INSTRUCTION: usize = 8;

/// The parts of an object that reach the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
struct Loaded {
    /// By the section's name: its bytes.
    sections: BTreeMap<String, Vec<u8>>,
    /// By the section's name: offset and symbol of each reference.
    references: BTreeMap<String, Vec<(u64, String)>>,
    /// Sections with instructions.
    code: BTreeSet<String>,
}

/// How the second object differs from the first; empty if both load the same.
pub(super) fn compare(committed: &[u8], built: &[u8]) -> Result<Vec<String>> {
    let committed = Loaded::parse(committed).context("the committed object")?;
    let built = Loaded::parse(built).context("the object built")?;
    Ok(committed.differences(&built))
}

/// The object without debug information. Only the linker needs that, to make BTF. It is most of the
/// object, and the only part that depends on the path of the checkout.
pub(super) fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("not an ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and of symbols in one table; they are written as two.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// The instructions in an object.
pub(super) fn instructions(object: &[u8]) -> Result<usize> {
    let loaded = Loaded::parse(object)?;
    let code = loaded
        .code
        .iter()
        .filter_map(|name| loaded.sections.get(name));
    Ok(code.map(|bytes| bytes.len() / INSTRUCTION).sum())
}

impl Loaded {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let file = object::File::parse(bytes).context("not an ELF file")?;
        let mut loaded = Self::default();
        for section in file.sections() {
            let name = section.name()?.to_owned();
            let SectionFlags::Elf { sh_flags } = section.flags() else {
                continue;
            };
            let allocated = sh_flags & u64::from(SHF_ALLOC) != 0;
            if !allocated && !name.starts_with(".BTF") {
                continue;
            }
            if section.kind() == SectionKind::Text {
                loaded.code.insert(name.clone());
            }
            let references = section.relocations().map(|(offset, relocation)| {
                let symbol = match relocation.target() {
                    RelocationTarget::Symbol(index) => {
                        file.symbol_by_index(index)?.name()?.to_owned()
                    }
                    other => format!("{other:?}"),
                };
                Ok((offset, symbol))
            });
            let references = references.collect::<Result<Vec<_>>>()?;
            loaded.references.insert(name.clone(), references);
            loaded.sections.insert(name, section.data()?.to_vec());
        }
        Ok(loaded)
    }

    fn differences(&self, other: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let names: BTreeSet<&String> = self.sections.keys().chain(other.sections.keys()).collect();
        for name in names {
            match (self.sections.get(name), other.sections.get(name)) {
                (Some(_), None) => {
                    differences.push(format!("section {name} is not built any more"));
                }
                (None, Some(_)) => {
                    differences.push(format!("section {name} is not in the committed object"));
                }
                (Some(ours), Some(theirs)) if ours != theirs => {
                    differences.push(self.difference(name, ours, theirs));
                }
                _ if self.references.get(name) != other.references.get(name) => {
                    differences.push(format!(
                        "section {name}: the same bytes refer to other symbols"
                    ));
                }
                _ => {}
            }
        }
        differences
    }

    fn difference(&self, name: &str, ours: &[u8], theirs: &[u8]) -> String {
        let first = ours.iter().zip(theirs).position(|(a, b)| a != b);
        let first = first.unwrap_or(ours.len().min(theirs.len()));
        let (unit, size) = if self.code.contains(name) {
            ("instruction", INSTRUCTION)
        } else {
            ("byte", 1)
        };
        let (committed, built) = (ours.len() / size, theirs.len() / size);
        format!(
            "section {name}: {committed} {unit}s committed, {built} built; \
             {unit} {} is the first that differs",
            first / size
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(code: &[u8], symbol: &str) -> Loaded {
        Loaded {
            sections: [("xdp".to_owned(), code.to_vec())].into(),
            references: [("xdp".to_owned(), vec![(40, symbol.to_owned())])].into(),
            code: ["xdp".to_owned()].into(),
        }
    }

    #[test]
    fn another_instruction_is_found_and_numbered() {
        let differences = loaded(&[0; 24], "LISTS")
            .differences(&loaded(&[[0; 16].as_slice(), &[7; 8]].concat(), "LISTS"));
        assert_eq!(
            differences,
            ["section xdp: 3 instructions committed, 3 built; \
                 instruction 2 is the first that differs"]
        );
    }

    #[test]
    fn the_same_instructions_on_another_map_are_a_difference() {
        assert_eq!(
            loaded(&[0; 8], "LISTS")
                .differences(&loaded(&[0; 8], "SETTINGS"))
                .len(),
            1
        );
        assert!(
            loaded(&[0; 8], "LISTS")
                .differences(&loaded(&[0; 8], "LISTS"))
                .is_empty()
        );
    }

    #[test]
    fn the_committed_object_has_the_program_and_its_maps() -> Result<()> {
        let path = crate::workspace::root().join("ebpf/prebuilt/portcullis.o");
        let loaded = Loaded::parse(&std::fs::read(path)?)?;
        assert!(loaded.code.contains("xdp"));
        for section in [".maps", ".rodata", "license", ".BTF", ".BTF.ext"] {
            assert!(
                loaded.sections.contains_key(section),
                "{section}: {:?}",
                loaded.sections.keys()
            );
        }
        Ok(())
    }
}
