"""The kubelet's wire messages: .proto files, and the code that `kubeletplugin.generate` makes of them."""
