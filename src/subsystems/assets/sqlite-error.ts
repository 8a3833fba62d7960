/** Gives an error of SQLite the code of the system call that it stands for, so that `storageError` tells a full disk from a defect. */
export function asErrno(error: unknown): unknown {
  const { errcode } = (error ?? {}) as { errcode?: number };
  if (errcode === undefined) return error;
  const primary = errcode & 0xff;
  // SQLITE_FULL; SQLITE_READONLY and SQLITE_CANTOPEN; anything else, an input or output error for example, keeps its number.
  const code = primary === 13 ? 'ENOSPC' : primary === 8 || primary === 14 ? 'EROFS' : `SQLITE_${errcode}`;
  return Object.assign(new Error((error as Error).message, { cause: error }), { code });
}
