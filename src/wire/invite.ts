import { isIP } from 'node:net';
import { concat, equal, fromHex, fromUtf8, hex, utf8 } from '../base/bytes.ts';
import { type Digest, digestHex, isDigest, sha256 } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';

/** What a second machine needs to join a network, as one string (docs/protocol/invite.md). */
export interface Invite {
  readonly networkId: Digest;
  /** Node id of who invites: the machine that answers at the addresses has to prove that it is this one. */
  readonly inviter: string;
  /** Whoever knows it may join, once. 20 random bytes, 40 hex digits. */
  readonly secret: string;
  /** Whole seconds. By the inviter's clock, which decides. */
  readonly expiresAtMs: number;
  /** `HOST:PORT`, the likeliest first. */
  readonly addresses: readonly string[];
}

/** What anybody needs to join a network that is open, any number of times. It holds no secret. */
export interface OpenInvite {
  readonly networkId: Digest;
  /** Node id of the member that answers at the addresses: the founder, or one that says where the founder is. */
  readonly peer: string;
  /** `HOST:PORT`, the likeliest first. */
  readonly addresses: readonly string[];
}

export const INVITE_LIMITS = {
  secretBytes: 20,
  addressesMax: 8,
  addressLengthMax: 255,
  /** Characters of the whole text. */
  lengthMax: 4_096,
} as const;

const PREFIX = 'hmi1';
const OPEN_PREFIX = 'hmo1';
const SECONDS_MAX = 2 ** 40 - 1;
const CHECKSUM_BYTES = 4;

/** One line of lower-case letters and digits; a double click selects all of it. */
export function encodeInvite(invite: Invite): string {
  const { networkId, inviter, secret, expiresAtMs, addresses } = invite;
  const seconds = expiresAtMs / 1_000;
  if (!isDigest(networkId) || !/^[0-9a-f]{64}$/.test(inviter) || !/^[0-9a-f]{40}$/.test(secret)) {
    throw new HyperMeshError('usage', 'An invite needs a network id, a node id and a secret of 20 bytes.');
  }
  if (!Number.isSafeInteger(seconds) || seconds < 0 || seconds > SECONDS_MAX) {
    throw new HyperMeshError('usage', 'An invite expires at a whole second.');
  }
  const time = new Uint8Array(8);
  new DataView(time.buffer).setBigUint64(0, BigInt(seconds));
  return textOf(
    PREFIX,
    concat(fromHex(digestHex(networkId)), fromHex(inviter), fromHex(secret), time.subarray(3), placesOf(addresses)),
  );
}

/** One line, as {@link encodeInvite}. */
export function encodeOpenInvite({ networkId, peer, addresses }: OpenInvite): string {
  if (!isDigest(networkId) || !/^[0-9a-f]{64}$/.test(peer)) {
    throw new HyperMeshError('usage', 'An open invite needs a network id and a node id.');
  }
  return textOf(OPEN_PREFIX, concat(fromHex(digestHex(networkId)), fromHex(peer), placesOf(addresses)));
}

function placesOf(addresses: readonly string[]): Uint8Array {
  if (addresses.length < 1 || addresses.length > INVITE_LIMITS.addressesMax) {
    throw new HyperMeshError('usage', `An invite names 1 to ${INVITE_LIMITS.addressesMax} addresses.`);
  }
  const places = addresses.map((address) => {
    checkAddress(address);
    return concat(Uint8Array.of(address.length), utf8(address));
  });
  return concat(Uint8Array.of(addresses.length), ...places);
}

function textOf(prefix: string, body: Uint8Array): string {
  return prefix + base32(concat(body, checksum(prefix, body)));
}

/** Of which kind a text claims to be. */
export function isOpenInvite(given: string): boolean {
  return given.trimStart().slice(0, OPEN_PREFIX.length).toLowerCase() === OPEN_PREFIX;
}

/** White space and capitals that a mail program put in do no harm. Errors: `invite-invalid`. */
export function decodeInvite(given: string): Invite {
  const reader = opened(PREFIX, given);
  const networkId: Digest = `sha256:${hex(reader.take(32))}`;
  const inviter = hex(reader.take(32));
  const secret = hex(reader.take(INVITE_LIMITS.secretBytes));
  const seconds = reader.take(5).reduce((sum, byte) => sum * 256 + byte, 0);
  return { networkId, inviter, secret, expiresAtMs: seconds * 1_000, addresses: reader.places() };
}

/** Errors: `invite-invalid`. */
export function decodeOpenInvite(given: string): OpenInvite {
  const reader = opened(OPEN_PREFIX, given);
  const networkId: Digest = `sha256:${hex(reader.take(32))}`;
  return { networkId, peer: hex(reader.take(32)), addresses: reader.places() };
}

/** The fields of a text whose prefix and checksum are right. */
function opened(prefix: string, given: string) {
  if (given.length > 2 * INVITE_LIMITS.lengthMax) throw invalid('it is too long');
  const text = given.replace(/\s+/g, '').toLowerCase();
  if (text.length > INVITE_LIMITS.lengthMax) throw invalid('it is too long');
  if (!text.startsWith(prefix)) {
    throw /^hm[io]\d/.test(text)
      ? invalid('it is of a newer kind than this version of HyperMesh knows')
      : invalid(`it does not begin with ${prefix}`);
  }
  const bytes = fromBase32(text.slice(prefix.length));
  if (bytes === undefined || bytes.length < CHECKSUM_BYTES) throw invalid('it is cut off or mistyped');
  const body = bytes.subarray(0, -CHECKSUM_BYTES);
  if (!equal(checksum(prefix, body), bytes.subarray(-CHECKSUM_BYTES))) throw invalid('it is cut off or mistyped');
  let at = 0;
  const take = (length: number) => {
    at += length;
    if (at > body.length) throw invalid('its parts do not fit together');
    return body.subarray(at - length, at);
  };
  /** The last of the fields. */
  const places = () => {
    const count = take(1)[0]!;
    if (count < 1 || count > INVITE_LIMITS.addressesMax) throw invalid('its parts do not fit together');
    const addresses = Array.from({ length: count }, () => {
      let address: string;
      try {
        address = fromUtf8(take(take(1)[0]!));
        checkAddress(address);
      } catch {
        throw invalid('an address in it is none');
      }
      return address;
    });
    if (at !== body.length) throw invalid('its parts do not fit together');
    return addresses;
  };
  return { take, places };
}

/** `HOST:PORT` with a name, an IPv4 address, or an IPv6 address in brackets. Errors: `usage`. */
export function checkAddress(address: string): void {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)):([1-9][0-9]{0,4})$/.exec(
    address,
  );
  const [, six, name, port] = match ?? [];
  const isHost = six === undefined ? name !== undefined : isIP(six) === 6;
  if (isHost && Number(port) <= 65_535 && address.length <= INVITE_LIMITS.addressLengthMax) return;
  throw new HyperMeshError(
    'usage',
    `Expected an address such as 192.0.2.7:9292 or [2001:db8::7]:9292, not "${address.slice(0, 100)}".`,
  );
}

function checksum(prefix: string, body: Uint8Array): Uint8Array {
  const domain = prefix === PREFIX ? 'hypermesh-invite-v1\0' : 'hypermesh-open-invite-v1\0';
  return sha256(concat(utf8(domain), body)).subarray(0, CHECKSUM_BYTES);
}

/** RFC 4648 section 6 in lower case, without padding. */
const ALPHABET = 'abcdefghijklmnopqrstuvwxyz234567';

function base32(bytes: Uint8Array): string {
  let text = '';
  let bits = 0;
  let held = 0;
  for (const byte of bytes) {
    held = (held << 8) | byte;
    for (bits += 8; bits >= 5; bits -= 5) text += ALPHABET[(held >> (bits - 5)) & 31];
    held &= (1 << bits) - 1;
  }
  return bits === 0 ? text : text + ALPHABET[(held << (5 - bits)) & 31];
}

/** Undefined for anything but the one text of some bytes. */
function fromBase32(text: string): Uint8Array | undefined {
  const bytes = new Uint8Array(Math.floor((text.length * 5) / 8));
  let at = 0;
  let bits = 0;
  let held = 0;
  for (const letter of text) {
    const value = ALPHABET.indexOf(letter);
    if (value < 0) return undefined;
    held = (held << 5) | value;
    bits += 5;
    if (bits < 8) continue;
    bits -= 8;
    bytes[at++] = held >> bits;
    held &= (1 << bits) - 1;
  }
  return bits < 5 && held === 0 ? bytes : undefined;
}

function invalid(why: string): HyperMeshError {
  return new HyperMeshError('invite-invalid', `This is not an invite: ${why}.`, {
    hint: 'Copy the whole text that begins with hmi1 (or hmo1), or ask for a new one: `hypermesh network invite` on the machine of the founder.',
  });
}
