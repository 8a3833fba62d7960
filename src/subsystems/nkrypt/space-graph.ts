/**
 * HM-PoSpace v1, the graph: which labels a label is made of (docs/protocol/proofs.md). Three layers of n labels of 32 bytes.
 * This is the slow, readable twin of the kernel's `labels`; verifiers use it for the few labels they recompute.
 */
import { fromHex, utf8 } from '../../base/bytes.ts';
import { sha256 } from '../../base/digest.ts';
import { compress } from './sha256.ts';

export const LAYERS = 3;
export const LABEL_BYTES = 32;

export interface Parents {
  /** In the same layer: the label before, and a farther one. Absent for label 0. */
  readonly before: number | undefined;
  readonly far: number | undefined;
  /** In the layer below. Absent in layer 1. */
  readonly below: number | undefined;
}

export function parentsOf(layer: number, label: number, n: number): Parents {
  let far: number | undefined;
  if (label > 0) {
    const mixed = mix(layer, label, 0n);
    const bits = BigInt(32 - Math.clz32(label));
    const scale = 1n << ((mixed & 0xffffffffn) % bits);
    let distance = scale + ((mixed >> 32n) % scale);
    if (distance > BigInt(label)) distance = 1n + ((mixed >> 32n) % BigInt(label));
    far = label - Number(distance);
  }
  return {
    before: label > 0 ? label - 1 : undefined,
    far,
    below: layer > 1 ? Number(mix(layer, label, 1n) % BigInt(n)) : undefined,
  };
}

/** splitmix64. */
function mix(layer: number, label: number, salt: bigint): bigint {
  const u64 = (value: bigint) => BigInt.asUintN(64, value);
  let z = u64(((BigInt(label) | (BigInt(layer) << 40n) | (salt << 48n)) + 1n) * 0x9e3779b97f4a7c15n);
  z = u64((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = u64((z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}

/** The initial state of an identity's labels in a network: eight words, little-endian in `bytes`. */
export function labelSeed(networkId: string, identity: string): Uint8Array {
  return sha256(Uint8Array.from([...utf8('hm-space-v1'), ...fromHex(networkId.slice(7)), ...fromHex(identity)]));
}

/** Labels are eight words, least significant byte first; absent parents are 32 zero bytes. */
export function labelOf(
  seed: Uint8Array,
  at: { readonly layer: number; readonly label: number; readonly iterations: number },
  parents: { readonly before: Uint8Array; readonly far: Uint8Array; readonly below: Uint8Array },
): Uint8Array {
  const state = littleEndian(seed);
  state[0]! ^= at.label;
  state[1]! ^= at.layer;
  const even = new Int32Array([...littleEndian(parents.before), ...littleEndian(parents.far)]);
  const odd = new Int32Array([...littleEndian(parents.below), ...littleEndian(parents.before)]);
  for (let step = 0; step < at.iterations; step++) compress(state, step % 2 === 0 ? even : odd);
  const out = new Uint8Array(LABEL_BYTES);
  const view = new DataView(out.buffer);
  for (const [i, word] of state.entries()) view.setInt32(i * 4, word, true);
  return out;
}

function littleEndian(bytes: Uint8Array): Int32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Int32Array.from({ length: 8 }, (_, i) => view.getInt32(i * 4, true));
}
