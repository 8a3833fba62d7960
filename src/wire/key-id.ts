import { concat, hex, utf8 } from '../base/bytes.ts';
import { sha256 } from '../base/digest.ts';

/** The two public keys of one subject; they are used together and named together by their key id. */
export interface PublicKeys {
  /** 1793 bytes. */
  readonly falcon: Uint8Array;
  /** 32 bytes. */
  readonly ed25519: Uint8Array;
}

/** SHA-256 over both public keys, 64 hex digits: the name of whoever holds them, stable when a certificate is renewed. */
export function keyIdOf(keys: PublicKeys): string {
  return hex(sha256(concat(utf8('hypermesh-key-v1\0'), keys.falcon, keys.ed25519)));
}
