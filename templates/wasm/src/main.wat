;; Reads JSON from standard input and prints {"received": <it>}.
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))

  ;; 0: an io vector (pointer, length), 8: a count, 16: text, 64: the input
  (memory (export "memory") 1)
  (data (i32.const 16) "{\"received\":") ;; 12 bytes
  (data (i32.const 32) "}\n")

  (func (export "_start")
    (call $print (i32.const 16) (i32.const 12))
    (loop $more
      (i32.store (i32.const 0) (i32.const 64))
      (i32.store (i32.const 4) (i32.const 65472))
      (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
      (if (i32.load (i32.const 8))
        (then
          (call $print (i32.const 64) (i32.load (i32.const 8)))
          (br $more))))
    (call $print (i32.const 32) (i32.const 2)))

  ;; Prints $length bytes at $at on standard output.
  (func $print (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)) (then (unreachable)))))
