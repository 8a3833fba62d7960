import { createCipheriv, createDecipheriv, randomBytes, scrypt } from 'node:crypto';
import { constants } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { base64, concat, fromBase64, fromHex, fromUtf8, hex, utf8 } from '../../base/bytes.ts';
import { sha256 } from '../../base/digest.ts';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';

/** Secret keys at rest (docs/protocol/keystore.md): sealed documents, opened by a passphrase or by a key file. */

const keyName = z.enum(['root', 'intermediate', 'publisher', 'validator', 'node']);
export type KeyName = z.infer<typeof keyName>;

/** Both key pairs of one subject. Only ever in the memory of the key worker. */
export interface SecretKeys {
  readonly falconSecret: Uint8Array;
  readonly falconPublic: Uint8Array;
  readonly ed25519Seed: Uint8Array;
  readonly ed25519Public: Uint8Array;
}

/** What opens the store. */
export interface Unlock {
  /** AES-256 key. */
  readonly key: Uint8Array;
  readonly kdf: Kdf;
}

const salt = z.string().regex(/^[A-Za-z0-9+/]{22}==$/);
const kdf = z.discriminatedUnion('name', [
  // The cost is bounded: a hostile document must not make this machine work for hours or take all its memory.
  z.strictObject({ name: z.literal('scrypt'), log2N: z.int().min(10).max(20), r: z.literal(8), p: z.literal(1), salt }),
  z.strictObject({ name: z.literal('file'), id: z.string().regex(/^[0-9a-f]{32}$/) }),
]);
export type Kdf = z.infer<typeof kdf>;
export type PassphraseKdf = Extract<Kdf, { name: 'scrypt' }>;

const KEY_BYTES = [2305, 1793, 32, 32] as const;
const KEY_BYTES_SUM = 2305 + 1793 + 32 + 32;

const sealedKeys = z.strictObject({
  formatVersion: z.literal(1),
  kdf,
  cipher: z.literal('aes-256-gcm'),
  nonce: z.string().regex(/^[A-Za-z0-9+/]{16}$/),
  keys: z
    .array(keyName)
    .min(1)
    .max(5)
    .refine((names) => new Set(names).size === names.length, 'expected each name once'),
  ciphertext: z.string().max(32_768),
});
export type SealedKeys = z.infer<typeof sealedKeys>;

/** Bytes of the largest sealed document. */
export const SEALED_BYTES_MAX = 65_536;

/** Errors: `key-invalid`. */
export function decodeSealed(text: string): SealedKeys {
  if (text.length <= SEALED_BYTES_MAX) {
    try {
      return sealedKeys.parse(JSON.parse(text));
    } catch {
      // Falls through: the parser's message could quote the document.
    }
  }
  throw new HyperMeshError('key-invalid', 'The key store is not a sealed key document of a known version.', {
    hint: 'Restore it from a backup or a state export.',
  });
}

export function sealKeys(keys: ReadonlyMap<KeyName, SecretKeys>, unlock: Unlock): string {
  const head = {
    formatVersion: 1 as const,
    kdf: unlock.kdf,
    cipher: 'aes-256-gcm' as const,
    nonce: base64(randomBytes(12)),
    keys: [...keys.keys()],
  };
  const plain = concat(
    ...[...keys.values()].flatMap((key) => [key.falconSecret, key.falconPublic, key.ed25519Seed, key.ed25519Public]),
  );
  try {
    const cipher = createCipheriv('aes-256-gcm', unlock.key, fromBase64(head.nonce)).setAAD(utf8(canonicalJson(head)));
    const ciphertext = concat(cipher.update(plain), cipher.final(), cipher.getAuthTag());
    return canonicalJson({ ...head, ciphertext: base64(ciphertext) } satisfies SealedKeys);
  } finally {
    plain.fill(0);
  }
}

/** Errors: `key-locked` when the passphrase is wrong, `key-invalid` when the key file is another one or the document is damaged. */
export function unsealKeys(text: string, unlock: Unlock): Map<KeyName, SecretKeys> {
  const { ciphertext, ...head } = decodeSealed(text);
  let plain: Uint8Array;
  try {
    const bytes = fromBase64(ciphertext);
    const decipher = createDecipheriv('aes-256-gcm', unlock.key, fromBase64(head.nonce))
      .setAAD(utf8(canonicalJson(head)))
      .setAuthTag(bytes.subarray(-16));
    plain = concat(decipher.update(bytes.subarray(0, -16)), decipher.final());
  } catch {
    throw head.kdf.name === 'scrypt'
      ? new HyperMeshError('key-locked', 'The passphrase does not open the key store, or the key store is damaged.', {
          hint: 'Give the passphrase that this home was created with, or the one it was given last.',
        })
      : new HyperMeshError(
          'key-invalid',
          'The key file does not open the key store: one of them is damaged or of another home.',
          {
            hint: 'Restore both from the same backup.',
          },
        );
  }
  try {
    if (plain.length !== head.keys.length * KEY_BYTES_SUM) {
      throw new HyperMeshError('key-invalid', 'The key store has the wrong length.');
    }
    let at = 0;
    const next = (length: number) => {
      at += length;
      return plain.slice(at - length, at);
    };
    return new Map(
      head.keys.map((name) => [
        name,
        {
          falconSecret: next(KEY_BYTES[0]),
          falconPublic: next(KEY_BYTES[1]),
          ed25519Seed: next(KEY_BYTES[2]),
          ed25519Public: next(KEY_BYTES[3]),
        },
      ]),
    );
  } finally {
    plain.fill(0);
  }
}

/** Checks that `unlock` opens the document; what it decrypts on the way is zeroed at once. Errors: as {@link unsealKeys}. */
export function checkUnlock(text: string, unlock: Unlock): void {
  for (const key of unsealKeys(text, unlock).values()) {
    key.falconSecret.fill(0);
    key.ed25519Seed.fill(0);
  }
}

/** For a new store. 2^17 takes 128 MiB and about half a second, once per start. */
export function newPassphraseKdf(log2N: number): PassphraseKdf {
  return { name: 'scrypt', log2N, r: 8, p: 1, salt: base64(randomBytes(16)) };
}

export async function unlockWithPassphrase(passphrase: string, by: PassphraseKdf): Promise<Unlock> {
  const N = 2 ** by.log2N;
  const key = await new Promise<Buffer>((resolve, reject) => {
    // Unicode form must not decide whether a passphrase is right.
    scrypt(
      passphrase.normalize('NFC'),
      fromBase64(by.salt),
      32,
      { N, r: by.r, p: by.p, maxmem: 256 * N * by.r },
      (error, made) => (error === null ? resolve(made) : reject(error)),
    );
  });
  return { key: new Uint8Array(key), kdf: by };
}

export const UNLOCK_FILE = 'unlock.key';
const UNLOCK_TEXT = /^hypermesh-unlock-key-v1 ([0-9a-f]{64})\n$/;

/** Reads the key file of a home. Undefined when there is none. Errors: `key-invalid` when others may read it or it is malformed. */
export async function readUnlockFile(directory: string): Promise<Unlock | undefined> {
  const path = join(directory, UNLOCK_FILE);
  let text: string;
  try {
    const file = await open(path, constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0));
    try {
      const about = await file.stat();
      if (process.platform !== 'win32' && (about.mode & 0o077) !== 0) {
        throw new HyperMeshError(
          'key-invalid',
          `The key file ${path} can be read by others (mode ${(about.mode & 0o777).toString(8)}).`,
          {
            hint: `Run: chmod 600 ${path} - and if somebody else may have read it, start a new home.`,
          },
        );
      }
      if (about.size > 256) throw malformedUnlockFile(path);
      text = fromUtf8(await file.readFile());
    } finally {
      await file.close();
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    if ((error as NodeJS.ErrnoException).code === 'ELOOP' || error instanceof TypeError)
      throw malformedUnlockFile(path);
    throw storageError(error, `reading ${path}`);
  }
  const digits = UNLOCK_TEXT.exec(text)?.[1];
  if (digits === undefined) throw malformedUnlockFile(path);
  return fromFileKey(fromHex(digits));
}

/** Makes the key file of a home. A crash leaves either no key file (a temporary one is overwritten next time) or the complete one. */
export async function createUnlockFile(directory: string): Promise<Unlock> {
  const key = new Uint8Array(randomBytes(32));
  const path = join(directory, UNLOCK_FILE);
  await writeAtomically(path, utf8(`hypermesh-unlock-key-v1 ${hex(key)}\n`));
  return fromFileKey(key);
}

function fromFileKey(key: Uint8Array): Unlock {
  return { key, kdf: { name: 'file', id: hex(sha256(concat(utf8('hypermesh-unlock-id\0'), key))).slice(0, 32) } };
}

function malformedUnlockFile(path: string): HyperMeshError {
  return new HyperMeshError('key-invalid', `${path} is not a key file of a known version.`, {
    hint: 'Restore it from a backup; without it the keys of this home cannot be opened.',
  });
}

/** Readable by the owner only; on disk under its name when it returns. */
async function writeAtomically(path: string, bytes: Uint8Array): Promise<void> {
  const temporary = `${path}.new`;
  try {
    await rm(temporary, { force: true });
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.writeFile(bytes);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (error) {
    throw storageError(error, `writing ${path}`);
  }
}

async function syncFolder(path: string): Promise<void> {
  if (process.platform === 'win32') return;
  const folder = await open(path, constants.O_RDONLY);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
