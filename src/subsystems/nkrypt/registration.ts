/**
 * Registration: the one time at which the committee checks that a commitment was really computed. It opens unpredictable labels of all
 * layers together with their parents, and computes them again.
 */
import { setImmediate as turn } from 'node:timers/promises';
import { concat, fromHex, hex, u64be, utf8 } from '../../base/bytes.ts';
import { sha256 } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import { ascending, type Opening, rootOf } from './merkle.ts';
import { LABEL_BYTES, LAYERS, labelOf, parentsOf } from './space-graph.ts';

export interface Registration {
  /** The committee's challenge, 64 hex digits. */
  readonly nonce: string;
  /** Roots of layers 1 to 3, 64 hex digits each. */
  readonly roots: readonly string[];
  /** Openings of layers 1 to 3 at `registrationPositions().needed`. */
  readonly layers: readonly Opening[];
}

export interface RegistrationPositions {
  readonly checked: readonly { readonly layer: number; readonly label: number }[];
  /** For each layer: the checked labels and the parents of checked labels, ascending. */
  readonly needed: readonly (readonly number[])[];
}

export function registrationPositions(
  nonce: string,
  roots: readonly string[],
  n: number,
  count: number,
): RegistrationPositions {
  const seed = concat(utf8('hm-space-v1/register'), fromHex(nonce), ...roots.map(fromHex));
  const needed = Array.from({ length: LAYERS }, () => new Set<number>());
  const checked = Array.from({ length: count }, (_, i) => {
    const draw = pick(seed, i, LAYERS * n);
    const [layer, label] = [Math.floor(draw / n) + 1, draw % n];
    const parents = parentsOf(layer, label, n);
    for (const own of [label, parents.before, parents.far]) if (own !== undefined) needed[layer - 1]!.add(own);
    if (parents.below !== undefined) needed[layer - 2]!.add(parents.below);
    return { layer, label };
  });
  return { checked, needed: needed.map(ascending) };
}

/** Positions of an audit: unpredictable before the beacon is out, and other ones for each operation. Ascending, distinct. */
export function auditPositions(
  beacon: string,
  context: string,
  root: string,
  n: number,
  count: number,
): readonly number[] {
  const seed = concat(utf8('hm-space-v1/audit'), fromHex(beacon), fromHex(context.slice(7)), fromHex(root));
  return ascending(Array.from({ length: count }, (_, i) => pick(seed, i, n)));
}

/** The first 8 bytes of SHA-256(seed || i) modulo `below` (less than 2^36: the bias is below 2^-28). */
function pick(seed: Uint8Array, i: number, below: number): number {
  const digest = sha256(concat(seed, u64be(BigInt(i))));
  return Number(new DataView(digest.buffer).getBigUint64(0) % BigInt(below));
}

/** Errors: `proof-rejected`, with what is wrong. Some 20 ms of work in slices. */
export async function checkRegistration(
  registration: Registration,
  terms: { readonly seed: Uint8Array; readonly bytes: number; readonly iterations: number; readonly openings: number },
): Promise<void> {
  const n = terms.bytes / LABEL_BYTES;
  const { roots, layers, nonce } = registration;
  if (roots.length !== LAYERS || layers.length !== LAYERS) throw rejected('it does not have three layers');
  const { checked, needed } = registrationPositions(nonce, roots, n, terms.openings);
  const labels: ReadonlyMap<number, Uint8Array>[] = [];
  for (const [index, positions] of needed.entries()) {
    const opening = layers[index]!;
    if (positions.length > 0) {
      const root = rootOf(n, positions, opening);
      if (root === undefined || hex(root) !== roots[index])
        throw rejected(`layer ${index + 1} does not lead to its root`);
    }
    labels.push(
      new Map(positions.map((at, i) => [at, opening.labels.subarray(i * LABEL_BYTES, (i + 1) * LABEL_BYTES)])),
    );
    await turn();
  }
  const zero = new Uint8Array(LABEL_BYTES);
  for (const [i, { layer, label }] of checked.entries()) {
    if (i % 16 === 15) await turn();
    const parents = parentsOf(layer, label, n);
    const of = (from: number, at: number | undefined) => (at === undefined ? zero : labels[from - 1]!.get(at)!);
    const expected = labelOf(
      terms.seed,
      { layer, label, iterations: terms.iterations },
      { before: of(layer, parents.before), far: of(layer, parents.far), below: of(layer - 1, parents.below) },
    );
    if (hex(of(layer, label)) !== hex(expected))
      throw rejected(`label ${label} of layer ${layer} is not what its parents give`);
  }
}

function rejected(why: string): HyperMeshError {
  return new HyperMeshError('proof-rejected', `The space commitment was not accepted: ${why}.`, {
    hint: 'Remove the folder of the commitment and start again; it is then made from scratch.',
  });
}
