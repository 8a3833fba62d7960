import { concat, equal, fromHex, hex, utf8 } from '../base/bytes.ts';
import { type Digest, digestHex, sha256 } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import type { LogInclusion, SignedTreeHead } from './signature.ts';

/** The Merkle tree of RFC 6962 section 2.1 over SHA-256 (docs/protocol/log.md). Pure functions; signatures are checked by `Trust.verify`. */

/** Payload type of the envelope of a tree head. */
export const TREE_HEAD_TYPE = 'application/vnd.hypermesh.log-head.v1+json';

/** Bytes of the largest leaf. */
export const LEAF_BYTES_MAX = 65_536;

const LEAF = Uint8Array.of(0);
/** What a node is the hash of: 1 and its two children. Used again each time; nothing of it is secret. */
const node = Uint8Array.of(1, ...new Uint8Array(64));

export function leafHash(leaf: Uint8Array): Uint8Array {
  return sha256(concat(LEAF, leaf));
}

export function nodeHash(left: Uint8Array, right: Uint8Array): Uint8Array {
  node.set(left, 1);
  node.set(right, 33);
  return sha256(node);
}

export function emptyRoot(): Uint8Array {
  return sha256(new Uint8Array());
}

/** The exact bytes that the envelope of a head signs. A verifier compares them with the payload of the verified envelope. */
export function treeHeadPayload(head: Omit<SignedTreeHead, 'envelope' | 'chain'>): Uint8Array {
  const { origin, size, root, timestampMs } = head;
  return utf8(canonicalJson({ origin, size, root, timestampMs }));
}

/** Checks that the leaf is in the tree of the head at that index (RFC 9162 section 2.1.3.2). Errors: `log-invalid`. */
export function verifyInclusion(
  leaf: Uint8Array,
  inclusion: Pick<LogInclusion, 'index' | 'path'> & { readonly head: Pick<SignedTreeHead, 'size' | 'root'> },
): void {
  const { index, head } = inclusion;
  if (!(Number.isSafeInteger(index) && index >= 0 && Number.isSafeInteger(head.size) && index < head.size)) {
    throw invalid(`The tree has ${head.size} leaves, so there is no leaf ${index}.`);
  }
  const root = foldPath(leafHash(leaf), index, head.size, decodePath(inclusion.path));
  if (root === undefined) throw invalid('The inclusion proof is longer or shorter than the tree is high.');
  if (!equal(root, rootBytes(head.root))) throw invalid('The leaf is not in the tree of this head.');
}

/** The root that a path leads to from a leaf's hash; undefined when the path does not have the length of that place in the tree. */
export function foldPath(
  leaf: Uint8Array,
  index: number,
  size: number,
  path: readonly Uint8Array[],
): Uint8Array | undefined {
  let node = index;
  let last = size - 1;
  let root = leaf;
  for (const sibling of path) {
    if (last === 0) return undefined;
    if (node % 2 === 1 || node === last) {
      root = nodeHash(sibling, root);
      while (node % 2 === 0 && node !== 0) {
        node /= 2;
        last = half(last);
      }
    } else {
      root = nodeHash(root, sibling);
    }
    node = half(node);
    last = half(last);
  }
  return last === 0 ? root : undefined;
}

/** Checks that the tree `to` begins with all of the tree `from` (RFC 9162 section 2.1.4.2). Errors: `log-invalid`. */
export function verifyConsistency(
  from: Pick<SignedTreeHead, 'size' | 'root'>,
  to: Pick<SignedTreeHead, 'size' | 'root'>,
  path: readonly string[],
): void {
  if (!(Number.isSafeInteger(from.size) && Number.isSafeInteger(to.size) && from.size >= 0 && from.size <= to.size)) {
    throw invalid(`A tree of ${to.size} leaves cannot begin with one of ${from.size}.`);
  }
  if (from.size === 0 || from.size === to.size) {
    if (path.length > 0) throw invalid('The consistency proof should be empty.');
    if (from.size === 0 && !equal(rootBytes(from.root), emptyRoot())) throw invalid('The empty tree has another root.');
    if (from.size === to.size && from.root !== to.root) throw invalid('Two heads of one size have different roots.');
    return;
  }
  const hashes = decodePath(path);
  let node = from.size - 1;
  let last = to.size - 1;
  while (node % 2 === 1) {
    node = half(node);
    last = half(last);
  }
  // When the old tree is a complete subtree, its root is the start and the proof leaves it out.
  const start = node === 0 ? rootBytes(from.root) : hashes.shift();
  if (start === undefined) throw invalid('The consistency proof is too short.');
  let oldRoot = start;
  let newRoot = start;
  for (const hash of hashes) {
    if (last === 0) throw invalid('The consistency proof is longer than the tree is high.');
    if (node % 2 === 1 || node === last) {
      oldRoot = nodeHash(hash, oldRoot);
      newRoot = nodeHash(hash, newRoot);
      while (node % 2 === 0 && node !== 0) {
        node /= 2;
        last = half(last);
      }
    } else {
      newRoot = nodeHash(newRoot, hash);
    }
    node = half(node);
    last = half(last);
  }
  if (last !== 0) throw invalid('The consistency proof is too short.');
  if (!equal(oldRoot, rootBytes(from.root)) || !equal(newRoot, rootBytes(to.root))) {
    throw invalid('The newer tree does not begin with the older one: the log was rewritten.');
  }
}

function half(value: number): number {
  return Math.floor(value / 2);
}

function rootBytes(root: Digest): Uint8Array {
  return fromHex(digestHex(root));
}

function decodePath(path: readonly string[]): Uint8Array[] {
  if (path.length > 64 || path.some((text) => !/^[0-9a-f]{64}$/.test(text))) {
    throw invalid('A proof is a list of at most 64 hashes of 64 hexadecimal digits.');
  }
  return path.map(fromHex);
}

function invalid(message: string): HyperMeshError {
  return new HyperMeshError('log-invalid', message);
}

export function rootDigest(root: Uint8Array): Digest {
  return `sha256:${hex(root)}`;
}
