"""Merkle trees: the known vectors of RFC 6962 logs, and proofs that hold for one leaf at one place only."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.errors import EvidenceError
from intaglio.evidence.merkle import merkle_proof, merkle_root, verify_merkle_proof

#: Leaves and roots of the first 0 to 8 of them, as certificate-transparency logs test themselves with.
LEAVES = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
LEAVES.append(bytes(range(0x60, 0x70)))
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("count", range(len(ROOTS)))
def test_known_roots(count: int) -> None:
    assert merkle_root(LEAVES[:count]).hex() == ROOTS[count]


def test_leaves_and_nodes_are_hashed_apart() -> None:
    left, right = (hashlib.sha256(b"\x00" + leaf).digest() for leaf in LEAVES[:2])
    assert merkle_proof(LEAVES[:2], 0) == (right,)
    assert merkle_root(LEAVES[:2]) == hashlib.sha256(b"\x01" + left + right).digest()
    assert merkle_root([left + right]) != merkle_root(LEAVES[:2])


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=40, unique=True), st.data())
def test_a_proof_holds_for_its_leaf_at_its_place_only(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root, proof = merkle_root(leaves), merkle_proof(leaves, index)
    assert verify_merkle_proof(leaves[index], index, len(leaves), proof, root)
    for other in range(-1, len(leaves) + 2):
        assert verify_merkle_proof(leaves[index], other, len(leaves), proof, root) == (other == index)
    assert not verify_merkle_proof(leaves[index] + b"x", index, len(leaves), proof, root)
    assert not verify_merkle_proof(leaves[index], index, len(leaves), (*proof, root), root)
    assert not verify_merkle_proof(leaves[index], index, len(leaves), proof, root[:-1] + bytes([root[-1] ^ 1]))
    for step in range(len(proof)):
        assert not verify_merkle_proof(leaves[index], index, len(leaves), proof[:step] + proof[step + 1 :], root)
        changed = bytes([proof[step][0] ^ 1]) + proof[step][1:]
        assert not verify_merkle_proof(leaves[index], index, len(leaves), (*proof[:step], changed), root)


@pytest.mark.parametrize("index", [-1, 8])
def test_no_proof_of_what_is_not_there(index: int) -> None:
    with pytest.raises(EvidenceError, match=f"there is no leaf {index} among 8"):
        merkle_proof(LEAVES, index)
