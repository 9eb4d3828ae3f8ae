from paceline.survey import cpu

PI_5 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41

processor\t: 1
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
BIG_LITTLE = "processor : 0\nFeatures : fp asimd sve\n\nprocessor : 1\nFeatures : fp asimd\n"
M2 = """\
hw.optional.arm.FEAT_CRC32: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.AdvSIMD: 1
hw.optional.floatingpoint: 1
machdep.cpu.cores_per_package: 8
machdep.cpu.brand_string: Apple M2
"""
INTEL_MAC = """\
hw.optional.avx2_0: 1
machdep.cpu.features: FPU SSE SSE2 SSE3 SSSE3 FMA SSE4.1 SSE4.2 AES OSXSAVE AVX1.0 RDRAND F16C
machdep.cpu.leaf7_features: RDWRFSGS BMI1 AVX2 BMI2 INVPCID
machdep.cpu.extfeatures: SYSCALL XD EM64T LAHF LZCNT RDTSCP
machdep.cpu.brand_string: Intel(R) Core(TM) i7-8750H CPU @ 2.20GHz
"""


def test_features_of_a_raspberry_pi():
    features = cpu.features_in_cpuinfo(PI_5)
    assert {"asimd", "asimddp", "crc32"} <= features
    assert "avx2" not in features


def test_features_are_those_all_cores_share():
    assert cpu.features_in_cpuinfo(BIG_LITTLE) == {"fp", "asimd"}


def test_no_flags_no_features():
    assert cpu.features_in_cpuinfo("processor : 0\nflags :\n") == frozenset()
    assert cpu.features_in_cpuinfo("") == frozenset()


def test_features_of_apple_silicon_have_the_kernels_names():
    assert cpu.features_on_macos(cpu.parse_sysctl(M2)) == {
        *("asimd", "fp", "crc32", "asimddp", "fphp", "asimdhp", "bf16", "i8mm"),
    }


def test_features_of_an_intel_mac_have_the_kernels_names():
    features = cpu.features_on_macos(cpu.parse_sysctl(INTEL_MAC))
    assert {"avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "sse4_1", "sse4_2", "pni", "abm"} <= features
    assert not any("." in feature for feature in features)


def test_sysctl_values_may_hold_colons():
    assert cpu.parse_sysctl("a.b: c: d\nnothing\n") == {"a.b": "c: d"}
